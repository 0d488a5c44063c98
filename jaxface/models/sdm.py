"""SDM's denoiser: a UNet on pictures under a label map (Wang et al., "Semantic image synthesis via diffusion models",
arXiv 2207.00050).

Residual blocks of the middle and of the way up are modulated by the label map (SPADE), those of the way down know
nothing of it. What the label map does depends neither on the picture nor on the time. So the network takes the label
map, of which each stage works out what it needs, or what `SDMUNet.cache` has worked out of it, once for all steps of a
sampling; likewise timesteps, or rows of `SDMUNet.times`.
"""

# B batch, or 1 that stands for every picture | M,N size of the picture and its label map | H,W size of features
# h,w the same behind a change of size | K classes | C channels | S timesteps

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxface import labels, resize
from jaxface.errors import UserError, check_at_least
from jaxface.layers import Dtype, spread
from jaxface.models.attention import attend
from jaxface.models.spade import Modulation, Spade
from jaxface.models.unet_layers import Conv, GroupNorm, Linear, check_sides, check_unet, timestep_embedding

# What a label map does in the two norms of a stage; nothing in plain ones.
Modulations = tuple[Modulation, ...]


def condition_map(label_BMN: jax.Array, num_classes: int = labels.NUM_CLASSES) -> jax.Array:
  """Label maps as `SDMUNet` takes them: one-hot classes, then the edges between them.

  Args:
    label_BMN: int [B, M, N], classes 0..K-1; K where a pixel shows nothing in particular.
    num_classes: K.

  Returns:
    Float32 [B, M, N, K + 1] of 0 and 1. Edges are pixels that differ from one of their four neighbours, both sides. A
    map of nothing is all zeros, the input of the unconditional branch of guidance.
  """
  edge = jnp.zeros(label_BMN.shape, bool)
  for axis in (1, 2):
    differs = jnp.diff(label_BMN, axis=axis) != 0
    before, after = ([side if a == axis else (0, 0) for a in range(3)] for side in ((0, 1), (1, 0)))
    edge |= jnp.pad(differs, before) | jnp.pad(differs, after)
  return jnp.concatenate([jax.nn.one_hot(label_BMN, num_classes), edge[..., None].astype(jnp.float32)], -1)


def halved(x_BHWC: jax.Array) -> jax.Array:
  """Means of 2x2 pixels: [B, H, W, C] -> [B, H/2, W/2, C]."""
  batch, height, width, channels = x_BHWC.shape
  return x_BHWC.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


class Residual(nn.Module):
  """Norm, SiLU, convolution, norm, the time's scale and shift, SiLU, convolution (zero at first), plus the input.

  Attributes:
    in_channels: of the input; where they differ from `channels` it is added through a 1x1 convolution.
    channels: C.
    spade_hidden: the norms are SPADE of so many hidden channels; without it group norms with scale and bias.
    resample: 'half' or 'twice' the size, of what meets the first convolution and of the input that is added.
    dtype: of the work.
  """

  in_channels: int
  channels: int
  spade_hidden: int | None = None
  resample: str | None = None
  dtype: Dtype = jnp.float32

  def setup(self):
    """Names the layers, which the methods share."""
    if self.spade_hidden is None:
      self.norm1, self.norm2 = GroupNorm(dtype=self.dtype), GroupNorm(dtype=self.dtype)
    else:
      self.norm1 = Spade(self.in_channels, self.spade_hidden, dtype=self.dtype)
      self.norm2 = Spade(self.channels, self.spade_hidden, dtype=self.dtype)
    self.time = Linear(2 * self.channels)
    self.conv1 = Conv(self.channels, dtype=self.dtype)
    self.conv2 = Conv(self.channels, zero=True, dtype=self.dtype)
    self.skip = None if self.in_channels == self.channels else Conv(self.channels, size=1, dtype=self.dtype)

  def film(self, emb_SC: jax.Array) -> jax.Array:
    """Embedded timesteps -> scales and shifts of the features, float32 [S, 2 C]."""
    return self.time(nn.silu(emb_SC))

  def prepare(self, y_BMNK: jax.Array, size: tuple[int, int]) -> Modulations:
    """What a label map (`condition_map`) does to an input of `size` in each norm."""
    if self.spade_hidden is None:
      return ()
    after = tuple(2 * side for side in size) if self.resample == 'twice' else size
    return self.norm1.maps(y_BMNK, size), self.norm2.maps(y_BMNK, after)

  def __call__(self, x_BHWC: jax.Array, film_BC: jax.Array, modulations: Modulations) -> jax.Array:
    """[B, H, W, in_channels] -> [B, h, w, C] in `dtype`; `film_BC` from `film`, `modulations` from `prepare`."""
    first, second = ((modulation,) for modulation in modulations) if modulations else ((), ())
    resample = {None: lambda t: t, 'half': halved, 'twice': resize.twice}[self.resample]
    y = self.conv1(resample(nn.silu(self.norm1(x_BHWC, *first))))
    y = self.norm2(y, *second)
    scale, shift = (spread(half, y) for half in jnp.split(film_BC[:, None, None], 2, -1))
    y = self.conv2(nn.silu(y * (1 + scale) + shift))
    x = resample(x_BHWC)
    return y + (x if self.skip is None else self.skip(x))


class Attention(nn.Module):
  """Group norm, every position's attention to all, a linear layer (zero at first), plus the input.

  The softmax is float32. Queries, keys and values are one linear layer's, whose channels lie head by head.
  """

  heads: int
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x_BHWC: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H, W, C] in `dtype`; `heads` divides C."""
    batch, height, width, channels = x_BHWC.shape
    y = GroupNorm(dtype=self.dtype, name='norm')(x_BHWC).reshape(batch, height * width, channels)
    qkv = Linear(3 * channels, dtype=self.dtype, name='qkv')(y).reshape(batch, height * width, self.heads, 3, -1)
    y = attend(*(qkv[:, :, :, i] for i in range(3)))
    return x_BHWC + Linear(channels, zero=True, dtype=self.dtype, name='out')(y.reshape(*y.shape[:2], -1)).reshape(
      x_BHWC.shape
    )


class Stage(nn.Module):
  """Residual block, then attention if it has heads.

  Attributes:
    in_channels: of the input.
    channels: C.
    heads: of the attention; 0 for none.
    spade_hidden: see `Residual`.
    resample: see `Residual`.
    dtype: of the work.
  """

  in_channels: int
  channels: int
  heads: int = 0
  spade_hidden: int | None = None
  resample: str | None = None
  dtype: Dtype = jnp.float32

  def setup(self):
    """Names the parts, which the methods share."""
    self.residual = Residual(self.in_channels, self.channels, self.spade_hidden, self.resample, self.dtype)
    self.attention = Attention(self.heads, self.dtype) if self.heads else None

  def film(self, emb_SC: jax.Array) -> jax.Array:
    """See `Residual.film`."""
    return self.residual.film(emb_SC)

  def prepare(self, y_BMNK: jax.Array, size: tuple[int, int]) -> Modulations:
    """See `Residual.prepare`."""
    return self.residual.prepare(y_BMNK, size)

  def __call__(self, x_BHWC: jax.Array, film_BC: jax.Array, conditioning: jax.Array | Modulations) -> jax.Array:
    """[B, H, W, in_channels] -> [B, h, w, C] in `dtype`; `conditioning` a label map, or what `prepare` made of it."""
    if not isinstance(conditioning, tuple):
      conditioning = self.prepare(conditioning, x_BHWC.shape[1:3])
    x = self.residual(x_BHWC, film_BC, conditioning)
    return self.attention(x) if self.heads else x


class SDMUNet(nn.Module):
  """The denoiser; defaults are the published one, for pictures of 256x256.

  It is called fresh, `apply(variables, x, t, y)` with `y` from `condition_map`, or with what is constant over a
  sampling's steps worked out before them: `cached = apply(variables, y, x.shape[1:3], method='cache')` and `times =
  apply(variables, steps, method='times')` once, then `apply(variables, x, {name: row[i] for name, row in
  times.items()}, cached)`.

  Attributes:
    model_channels: channels at full size, which the multipliers multiply; a multiple of 32.
    multipliers: of each level; each has half the size of the one before.
    num_blocks: residual blocks of each level on the way down; one more on the way up.
    attention_factors: how many times smaller than the picture features are that have attention; the smallest always.
    head_channels: channels of an attention head.
    learn_sigma: whether the variance is predicted, too.
    num_classes: K.
    spade_hidden: hidden channels of each SPADE.
    remat: recompute each stage in the backward pass, what the label map does too: less memory, more time.
    dtype: of the work and of what is cached; parameters, statistics, scores, times and results are float32.
  """

  model_channels: int = 256
  multipliers: tuple[int, ...] = (1, 1, 2, 2, 4, 4)
  num_blocks: int = 2
  attention_factors: tuple[int, ...] = (8, 16, 32)
  head_channels: int = 64
  learn_sigma: bool = True
  num_classes: int = labels.NUM_CLASSES
  spade_hidden: int = 128
  remat: bool = False
  dtype: Dtype = jnp.float32

  def __post_init__(self):
    """Says what is wrong with the attributes while the caller is still on the stack."""
    check_at_least(1, self, 'num_blocks', 'head_channels', 'num_classes', 'spade_hidden')
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
    encoder = []
    for level, width in enumerate(widths):
      for _ in range(self.num_blocks):
        encoder.append(kind(skips[-1], width, heads[level]))
        skips.append(width)
      if level < last:
        encoder.append(kind(width, width, resample='half'))
        skips.append(width)
    self.encoder = encoder

    deepest = widths[-1]
    self.middle = [modulated(deepest, deepest, deepest // self.head_channels), modulated(deepest, deepest)]

    decoder, channels = [], deepest
    for level in range(last, -1, -1):
      for _ in range(self.num_blocks + 1):
        decoder.append(modulated(channels + skips.pop(), widths[level], heads[level]))
        channels = widths[level]
    self.decoder = decoder
    self.enlarge = [modulated(width, width, resample='twice') for width in widths[:0:-1]]
    self.norm, self.out = GroupNorm(), Conv(6 if self.learn_sigma else 3, zero=True)

  def times(self, t: jax.Array) -> dict[str, jax.Array]:
    """Timesteps [S], integers or floats -> name of a stage -> scales and shifts of its features, float32 [S, 2 C]."""
    emb = self.time2(nn.silu(self.time1(timestep_embedding(t, self.model_channels))))
    stages = (*self.encoder, *self.middle, *self.decoder, *self.enlarge)
    return {stage.name: stage.film(emb) for stage in stages}

  def cache(self, y: jax.Array, size: tuple[int, int]) -> dict[str, Modulations]:
    """What label maps do to pictures of `size` (M, N), their own, in every stage by name; arrays in `dtype`.

    A cache of batch 1 serves pictures of any batch. It is large: at the published size 510 million numbers a picture,
    2 GB in float32.
    """
    self._check(size, y)
    sizes = [tuple(side >> level for side in size) for level in range(len(self.multipliers))]
    cached = {stage.name: () for stage in self.encoder}
    cached |= {stage.name: stage.prepare(y, sizes[-1]) for stage in self.middle}
    for i, stage in enumerate(self.decoder):
      cached[stage.name] = stage.prepare(y, sizes[-1 - i // (self.num_blocks + 1)])
    for i, stage in enumerate(self.enlarge):
      cached[stage.name] = stage.prepare(y, sizes[-1 - i])
    return cached

  def __call__(
    self, x: jax.Array, t: jax.Array | Mapping[str, jax.Array], conditioning: jax.Array | Mapping[str, Modulations]
  ) -> jax.Array:
    """Predicts the noise in a picture, and the variance of the step that takes some of it away.

    Args:
      x: noisy picture [B, M, N, 3]; sides are multiples of 2^(levels - 1).
      t: timesteps [B], or [1] for all pictures, or their row of `times`, whose arrays are [2 C], [1, 2 C] or [B, 2 C].
      conditioning: [B, M, N, K + 1] from `condition_map`, or of batch 1 for all pictures; or `cache` of it.

    Returns:
      float32 [B, M, N, 6]: the noise, then v, which says where the log variance lies between its bounds, from -1 for
      the posterior's to 1 for beta's. Without `learn_sigma` only the noise, [B, M, N, 3].

    Raises:
      UserError: sides that are not halved so often, or a label map of another size or number of classes.
    """
    self._check(x.shape[1:3], conditioning)
    films = t if isinstance(t, Mapping) else self.times(t)

    def run(stage: Stage, x: jax.Array) -> jax.Array:
      film = films[stage.name]
      given = conditioning[stage.name] if isinstance(conditioning, Mapping) else conditioning
      return stage(x, film.reshape(-1, film.shape[-1]), given)

    x = self.stem(x)
    skips = [x]
    for stage in self.encoder:
      x = run(stage, x)
      skips.append(x)
    for stage in self.middle:
      x = run(stage, x)
    for i, stage in enumerate(self.decoder):
      x = run(stage, jnp.concatenate([x, skips.pop()], -1))
      level, block = divmod(i, self.num_blocks + 1)
      if block == self.num_blocks and level < len(self.enlarge):
        x = run(self.enlarge[level], x)
    return self.out(nn.silu(self.norm(x)))

  def _check(self, size: tuple[int, int], conditioning: jax.Array | Mapping[str, Modulations]) -> None:
    check_sides('picture', size, len(self.multipliers))
    wanted = (*size, self.num_classes + 1)
    if not isinstance(conditioning, Mapping) and conditioning.shape[1:] != wanted:
      raise UserError(
        f'label maps {list(conditioning.shape)} for pictures of {size[0]}x{size[1]} and {self.num_classes} classes; '
        f'they must be [B, {", ".join(str(n) for n in wanted)}], as condition_map makes them'
      )
