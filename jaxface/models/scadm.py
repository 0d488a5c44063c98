"""SCA-DM's denoiser: a UNet under a label map and one style token a class (Ergasti et al., "Controllable face synthesis
with semantic latent diffusion models", 2024), on the latents of a first stage.

Residual blocks of the middle and of the way up are modulated by the label map (SPADE); transformers, where there are
some, let each position attend to the token of its class. Both depend on the conditioning only, not on the latent or the
time. So the network takes a `Conditioning`, from which each stage works out what it needs, or the `Cached` one in which
`SCAUNet.cache` has worked that out, once for all steps of a sampling; likewise timesteps, or rows of `SCAUNet.times`.
"""

# B batch, or 1 that stands for every picture | M,N size of the label map | H,W size of the latent, h,w of features
# K classes | D token channels | C channels | S timesteps

import functools
from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxface import resize
from jaxface.errors import UserError, check_at_least
from jaxface.layers import Dtype, spread
from jaxface.models.attention import Keys, Lookup, MaskedAttention, SelfAttention
from jaxface.models.spade import Modulation, Spade
from jaxface.models.unet_layers import Conv, GroupNorm, Linear, check_sides, check_unet, timestep_embedding


@flax.struct.dataclass
class Conditioning:
  """What a face is drawn from. The label map is `label` or, where pixels have several classes or parts of them, `mask`.

  Attributes:
    tokens: float [B, K, D], each class's style.
    label: int [B, M, N], each pixel's class; K for none.
    mask: float [B, M, N, K], how much each pixel belongs to each class.
  """

  tokens: jax.Array
  label: jax.Array | None = None
  mask: jax.Array | None = None

  def of(self, stage: str) -> 'Conditioning':
    """What the stage of that name takes: all."""
    del stage
    return self

  def label_at(self, size: tuple[int, int]) -> jax.Array:
    """Class of each position, int [B, h, w]."""
    return resize.nearest(self.label, size)

  def mask_at(self, size: tuple[int, int]) -> jax.Array:
    """Label map of that size, float [B, h, w, K]; a position without class has zeros."""
    if self.label is None:
      return resize.nearest(self.mask, size)
    return jax.nn.one_hot(self.label_at(size), self.tokens.shape[1])


@flax.struct.dataclass
class Cached:
  """A `Conditioning` as the stages of one network, on latents of one size, take it: see `SCAUNet.cache`.

  Attributes:
    stages: name of a stage -> what its `prepare` returned.
  """

  stages: dict[str, Any]

  def of(self, stage: str) -> Any:
    """What the stage of that name takes."""
    return self.stages[stage]


class Residual(nn.Module):
  """Norm, SiLU, convolution, the time's shift, norm, SiLU, convolution (zero at first), plus the input.

  Attributes:
    in_channels: of the input; where they differ from `channels` it is added through a 1x1 convolution.
    channels: C.
    spade_hidden: the norms are SPADE of so many hidden channels; without it group norms with scale and bias.
    dtype: of the work.
  """

  in_channels: int
  channels: int
  spade_hidden: int | None = None
  dtype: Dtype = jnp.float32

  def setup(self):
    """Names the layers, which the methods share."""
    if self.spade_hidden is None:
      self.norm1, self.norm2 = GroupNorm(dtype=self.dtype), GroupNorm(dtype=self.dtype)
    else:
      self.norm1 = Spade(self.in_channels, self.spade_hidden, dtype=self.dtype)
      self.norm2 = Spade(self.channels, self.spade_hidden, dtype=self.dtype)
    self.time = Linear(self.channels)
    self.conv1 = Conv(self.channels, dtype=self.dtype)
    self.conv2 = Conv(self.channels, zero=True, dtype=self.dtype)
    self.skip = None if self.in_channels == self.channels else Conv(self.channels, size=1, dtype=self.dtype)

  def shift(self, emb_SC: jax.Array) -> jax.Array:
    """Embedded timesteps -> what they add to the features, float32 [S, C]."""
    return self.time(nn.silu(emb_SC))

  def prepare(self, conditioning: Conditioning, size: tuple[int, int]) -> tuple[Modulation, ...]:
    """What `conditioning` does to features of `size` in each norm; nothing to plain ones."""
    if self.spade_hidden is None:
      return ()
    mask = conditioning.mask_at(size)
    return self.norm1.maps(mask, size), self.norm2.maps(mask, size)

  def __call__(self, x_BhwC: jax.Array, shift_BC: jax.Array, modulations: tuple[Modulation, ...] = ()) -> jax.Array:
    """[B, h, w, in_channels] -> [B, h, w, C] in `dtype`; `shift_BC` from `shift`, `modulations` from `prepare`."""
    first, second = ((modulation,) for modulation in modulations) if modulations else ((), ())
    y = self.conv1(nn.silu(self.norm1(x_BhwC, *first)))
    y = y + spread(shift_BC[:, None, None], y)
    y = self.conv2(nn.silu(self.norm2(y, *second)))
    return y + (x_BhwC if self.skip is None else self.skip(x_BhwC))


class Transformer(nn.Module):
  """Self-attention, attention to the tokens of the positions' classes, and a gated layer over a picture's positions.

  Each has a layer norm before it and is added to what it took; 1x1 convolutions lead in and out (zero at first), and
  the input is added at the end.

  Attributes:
    channels: C.
    heads: of both attentions; divides C.
    dtype: of the work.
  """

  channels: int
  heads: int
  dtype: Dtype = jnp.float32

  def setup(self):
    """Names the layers, which the methods share."""
    # Not the fast variance, E[x^2] - E[x]^2, which loses what hardly varies.
    layer_norm = functools.partial(nn.LayerNorm, epsilon=1e-5, use_fast_variance=False, dtype=self.dtype)
    self.norm = GroupNorm(epsilon=1e-6, dtype=self.dtype)
    self.conv_in = Conv(self.channels, size=1, dtype=self.dtype)
    self.norm1, self.norm2, self.norm3 = layer_norm(), layer_norm(), layer_norm()
    self.to_positions = SelfAttention(self.heads, dtype=self.dtype)
    self.to_classes = MaskedAttention(self.channels, self.heads, dtype=self.dtype)
    self.widen = Linear(8 * self.channels, dtype=self.dtype)
    self.narrow = Linear(self.channels, dtype=self.dtype)
    self.conv_out = Conv(self.channels, size=1, zero=True, dtype=self.dtype)

  def prepare(self, conditioning: Conditioning, size: tuple[int, int]) -> Lookup | Keys:
    """What the attention to classes takes of `conditioning`, on features of `size`."""
    tokens, positions = conditioning.tokens, size[0] * size[1]
    if conditioning.label is not None:
      return self.to_classes.lookup(tokens, conditioning.label_at(size).reshape(-1, positions))
    mask = conditioning.mask
    return self.to_classes.keys(
      tokens, None if mask is None else conditioning.mask_at(size).reshape(-1, positions, mask.shape[-1])
    )

  def __call__(self, x_BhwC: jax.Array, prepared: Lookup | Keys) -> jax.Array:
    """[B, h, w, C] -> [B, h, w, C] in `dtype`; `prepared` from `prepare`."""
    batch, height, width, channels = x_BhwC.shape
    y = self.conv_in(self.norm(x_BhwC)).reshape(batch, height * width, channels)
    y = y + self.to_positions(self.norm1(y))
    y = y + self.to_classes(self.norm2(y), prepared)
    value, gate = jnp.split(self.widen(self.norm3(y)), 2, -1)
    y = y + self.narrow(value * nn.gelu(gate, approximate=False))
    return x_BhwC + self.conv_out(y.reshape(x_BhwC.shape))


class Stage(nn.Module):
  """Residual block, then a transformer if it has heads, then, with `up`, pixels doubled and a convolution.

  Attributes:
    in_channels: of the input.
    channels: C.
    heads: of the transformer; 0 for none.
    spade_hidden: see `Residual`.
    up: whether it ends in features of twice the size.
    dtype: of the work.
  """

  in_channels: int
  channels: int
  heads: int
  spade_hidden: int | None = None
  up: bool = False
  dtype: Dtype = jnp.float32

  def setup(self):
    """Names the parts, which the methods share."""
    self.residual = Residual(self.in_channels, self.channels, self.spade_hidden, self.dtype)
    self.transformer = Transformer(self.channels, self.heads, self.dtype) if self.heads else None
    self.enlarge = Conv(self.channels, dtype=self.dtype) if self.up else None

  def shift(self, emb_SC: jax.Array) -> jax.Array:
    """See `Residual.shift`."""
    return self.residual.shift(emb_SC)

  def prepare(self, conditioning: Conditioning, size: tuple[int, int]) -> tuple[Any, Any]:
    """What the two parts take of `conditioning` on features of `size`."""
    transformer = self.transformer.prepare(conditioning, size) if self.heads else None
    return self.residual.prepare(conditioning, size), transformer

  def __call__(self, x_BhwC: jax.Array, shift_BC: jax.Array, conditioning: Conditioning | tuple[Any, Any]) -> jax.Array:
    """[B, h, w, in_channels] -> [B, h, w, C], or [B, 2h, 2w, C]; `conditioning` fresh or as `prepare` returned it."""
    if isinstance(conditioning, Conditioning):
      conditioning = self.prepare(conditioning, x_BhwC.shape[1:3])
    modulations, prepared = conditioning
    x = self.residual(x_BhwC, shift_BC, modulations)
    if self.heads:
      x = self.transformer(x, prepared)
    return self.enlarge(resize.twice(x)) if self.up else x


class SCAUNet(nn.Module):
  """The denoiser; defaults are the published one, of 486.9 million parameters, on latents of 1/4 of the pictures' size.

  It is called fresh, `apply(variables, x, t, conditioning)`, or with what is constant over a sampling's steps worked
  out before them: `cached = apply(variables, conditioning, x.shape[1:3], method='cache')` and `times = apply(variables,
  steps, method='times')` once, then `apply(variables, x, {name: row[i] for name, row in times.items()}, cached)`.
  With a label map of one class a pixel, queries and keys of the attention to tokens have no effect, nor gradients.

  Attributes:
    model_channels: channels at full size, which the multipliers multiply. All widths must be multiples of 32.
    multipliers: of each level; each has half the size of the one before.
    num_blocks: stages of each level on the way down; one more on the way up.
    attention_factors: how many times smaller than the latent features are that have transformers; the smallest always.
    head_channels: channels of an attention head.
    context_dim: D; None for whatever the tokens have.
    num_classes: K.
    out_channels: of the result.
    spade_hidden: hidden channels of each SPADE.
    remat: recompute each stage in the backward pass, its conditioning too: less memory, more time.
    dtype: of the work and of cached conditioning; parameters, statistics, scores, shifts and results are float32.
  """

  model_channels: int = 224
  multipliers: tuple[int, ...] = (1, 2, 3, 4)
  num_blocks: int = 2
  attention_factors: tuple[int, ...] = (2, 4, 8)
  head_channels: int = 32
  context_dim: int | None = 1280
  num_classes: int = 19
  out_channels: int = 3
  spade_hidden: int = 128
  remat: bool = False
  dtype: Dtype = jnp.float32

  def __post_init__(self):
    check_at_least(1, self, 'num_blocks', 'num_classes', 'out_channels', 'spade_hidden', 'head_channels')
    check_unet(self.model_channels, self.multipliers, self.attention_factors, self.head_channels)
    super().__post_init__()

  def setup(self):
    """Names the stages, which the methods share."""
    kind = functools.partial(nn.remat(Stage) if self.remat else Stage, dtype=self.dtype)
    modulated = functools.partial(kind, spade_hidden=self.spade_hidden)
    widths = [self.model_channels * multiplier for multiplier in self.multipliers]
    heads = [
      width // self.head_channels if 2**level in self.attention_factors else 0 for level, width in enumerate(widths)
    ]
    last = len(widths) - 1

    self.time1, self.time2 = (Linear(4 * self.model_channels) for _ in range(2))
    self.stem = Conv(self.model_channels, dtype=self.dtype)
    skips = [self.model_channels]
    encoder, shrinks = [], []
    for level, width in enumerate(widths):
      for _ in range(self.num_blocks):
        encoder.append(kind(skips[-1], width, heads[level]))
        skips.append(width)
      if level < last:
        shrinks.append(Conv(width, stride=2, dtype=self.dtype))
        skips.append(width)
    self.encoder, self.shrink = encoder, shrinks

    deepest = widths[-1]
    self.middle = [modulated(deepest, deepest, deepest // self.head_channels), modulated(deepest, deepest, 0)]

    decoder, channels = [], deepest
    for level in range(last, -1, -1):
      for block in range(self.num_blocks + 1):
        up = level > 0 and block == self.num_blocks
        decoder.append(modulated(channels + skips.pop(), widths[level], heads[level], up=up))
        channels = widths[level]
    self.decoder = decoder
    self.norm, self.out = GroupNorm(), Conv(self.out_channels, zero=True)

  def _stages(self) -> tuple[Stage, ...]:
    return (*self.encoder, *self.middle, *self.decoder)

  def times(self, t: jax.Array) -> dict[str, jax.Array]:
    """Timesteps [S], integers or floats -> name of a stage -> what they add to its features, float32 [S, C]."""
    emb = self.time2(nn.silu(self.time1(timestep_embedding(t, self.model_channels))))
    return {stage.name: stage.shift(emb) for stage in self._stages()}

  def cache(self, conditioning: Conditioning, size: tuple[int, int]) -> Cached:
    """What every stage takes of `conditioning` on latents of size (H, W); arrays in `dtype`.

    A cache of batch 1 serves latents of any batch. At the published size, 64x64, it holds 31 million numbers a picture.
    """
    self._check(size, conditioning)
    height, width = size
    levels = len(self.multipliers)
    down = [level for level in range(levels) for _ in range(self.num_blocks)]
    up = [level for level in range(levels - 1, -1, -1) for _ in range(self.num_blocks + 1)]
    placed = zip(self._stages(), (*down, levels - 1, levels - 1, *up), strict=True)
    return Cached({stage.name: stage.prepare(conditioning, (height >> n, width >> n)) for stage, n in placed})

  def __call__(
    self, x: jax.Array, t: jax.Array | Mapping[str, jax.Array], conditioning: Conditioning | Cached
  ) -> jax.Array:
    """Predicts the noise in a latent.

    Args:
      x: noisy latent [B, H, W, channels]; sides are multiples of 2^(levels - 1).
      t: timesteps [B], or [1] for all pictures, or their row of `times`, whose arrays are [C], [1, C] or [B, C].
      conditioning: of batch B, or 1 for all pictures; or `cache` of it.

    Returns:
      [B, H, W, out_channels], float32.
    """
    self._check(x.shape[1:3], conditioning)
    shifts = t if isinstance(t, Mapping) else self.times(t)

    def run(stage: Stage, x: jax.Array) -> jax.Array:
      shift = shifts[stage.name]
      return stage(x, shift.reshape(-1, shift.shape[-1]), conditioning.of(stage.name))

    x = self.stem(x)
    skips = [x]
    for i, stage in enumerate(self.encoder):
      x = run(stage, x)
      skips.append(x)
      level, block = divmod(i + 1, self.num_blocks)
      if block == 0 and level <= len(self.shrink):
        x = self.shrink[level - 1](x)
        skips.append(x)
    for stage in self.middle:
      x = run(stage, x)
    for stage in self.decoder:
      x = run(stage, jnp.concatenate([x, skips.pop()], -1))
    return self.out(nn.silu(self.norm(x)))

  def _check(self, size: tuple[int, int], conditioning: Conditioning | Cached) -> None:
    check_sides('latent', size, len(self.multipliers))
    if isinstance(conditioning, Cached):
      return
    if (conditioning.label is None) == (conditioning.mask is None):
      raise UserError('conditioning needs one label map: label, each pixel one class, or mask; not both, not neither')
    shape, wanted = conditioning.tokens.shape, self.context_dim or conditioning.tokens.shape[-1]
    if shape[1:] != (self.num_classes, wanted):
      raise UserError(f'tokens of shape {shape} given to a network for [B, {self.num_classes}, {wanted}]')
    if conditioning.mask is not None and conditioning.mask.shape[-1] != self.num_classes:
      raise UserError(f'a mask of shape {conditioning.mask.shape} given to a network of {self.num_classes} classes')


def denoise_with_scores(
  unet: SCAUNet, variables: Mapping[str, Any], x: jax.Array, t: jax.Array, conditioning: Conditioning
) -> tuple[jax.Array, list[jax.Array]]:
  """`unet.apply(variables, x, t, conditioning)`, and the scores before the mask of every attention to tokens.

  Each is float32 [B, heads, positions, K], in the order of the network. With them queries and keys have gradients.
  """
  if not isinstance(conditioning, Conditioning):
    raise UserError('cached conditioning has no scores; give the conditioning that it was made from')
  eps, kept = unet.apply(variables, x, t, conditioning, mutable=['intermediates'])
  parts = ('encoder', 'middle', 'decoder')
  stages = sorted(kept['intermediates'], key=lambda name: (parts.index(name.split('_')[0]), int(name.split('_')[1])))
  return eps, [kept['intermediates'][stage]['transformer']['to_classes']['scores'][0] for stage in stages]
