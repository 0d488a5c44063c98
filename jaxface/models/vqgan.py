"""The VQ autoencoder of Esser et al. 2021 as latent diffusion uses it (Rombach et al. 2022: VQ-f4).

A convolutional encoder to a small grid of latent vectors, a codebook that each is replaced from, and a decoder back.
CompVis/latent-diffusion's public weights compute the same here.
"""

# B batch | H,W pixels | h,w latent grid | C channels | d latent channels | N codebook entries

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxface import resize
from jaxface.errors import UserError, check_at_least, check_floats
from jaxface.layers import Dtype
from jaxface.models.attention import attend
from jaxface.models.unet_layers import GROUPS, Conv, GroupNorm, uniform_within

# Of every norm.
_EPSILON = 1e-6


class Quantised(NamedTuple):
  """Latents replaced by the codebook's nearest entries.

  Attributes:
    latent: float32 [B, h, w, d], the entries; backwards, the gradient passes to the latents as if nothing had happened.
    indices: int32 [B, h, w], which entries; of equally near ones the first.
    codebook: scalar, mean squared distance whose gradient moves the entries only.
    commitment: the same number, whose gradient moves the latents only.
  """

  latent: jax.Array
  indices: jax.Array
  codebook: jax.Array
  commitment: jax.Array


class ResidualBlock(nn.Module):
  """x plus two normalised convolutions of it; where the channels change, x through a 1x1 convolution."""

  features: int
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x_BHWC: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H, W, features] in `dtype`."""
    y = x_BHWC
    for i in range(2):
      y = nn.silu(GroupNorm(epsilon=_EPSILON, dtype=self.dtype, name=f'norm{i}')(y))
      y = Conv(self.features, dtype=self.dtype, name=f'conv{i}')(y)
    if x_BHWC.shape[-1] != self.features:
      x_BHWC = Conv(self.features, 1, dtype=self.dtype, name='shortcut')(x_BHWC)
    return x_BHWC.astype(self.dtype) + y


class Attention(nn.Module):
  """x plus self-attention over its positions: one head over all channels."""

  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x_BHWC: jax.Array) -> jax.Array:
    """[B, H, W, C] -> the same shape, in `dtype`."""
    batch, height, width, channels = x_BHWC.shape
    y = GroupNorm(epsilon=_EPSILON, dtype=self.dtype, name='norm')(x_BHWC)
    q, k, v = (
      Conv(channels, 1, dtype=self.dtype, name=name)(y).reshape(batch, height * width, 1, channels)
      for name in ('query', 'key', 'value')
    )
    y = attend(q, k, v).reshape(x_BHWC.shape)
    return x_BHWC.astype(self.dtype) + Conv(channels, 1, dtype=self.dtype, name='out')(y)


class Downsample(nn.Module):
  """3x3 convolution by stride 2, one row and one column of zeros below and to the right."""

  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x_BHWC: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H // 2, W // 2, C] in `dtype`."""
    x_BHWC = jnp.pad(x_BHWC, ((0, 0), (0, 1), (0, 1), (0, 0)))
    return Conv(x_BHWC.shape[-1], stride=2, pad=0, dtype=self.dtype, name='conv')(x_BHWC)


class Upsample(nn.Module):
  """Every pixel as 2x2 pixels, then a 3x3 convolution."""

  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x_BHWC: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, 2H, 2W, C] in `dtype`."""
    return Conv(x_BHWC.shape[-1], dtype=self.dtype, name='conv')(resize.twice(x_BHWC))


class _Stack(nn.Module):
  """What encoder and decoder share: their sizes, and the blocks where the grid is smallest."""

  width: int
  multipliers: tuple[int, ...]
  num_blocks: int
  dtype: Dtype
  remat: bool

  def _block(self, features: int, name: str) -> ResidualBlock:
    block = nn.remat(ResidualBlock) if self.remat else ResidualBlock
    return block(features, self.dtype, name=name)

  def _middle(self, x: jax.Array) -> jax.Array:
    attention = nn.remat(Attention) if self.remat else Attention
    x = self._block(x.shape[-1], 'middle_block0')(x)
    x = attention(self.dtype, name='middle_attention')(x)
    return self._block(x.shape[-1], 'middle_block1')(x)

  def _normalised(self, x: jax.Array) -> jax.Array:
    return nn.silu(GroupNorm(epsilon=_EPSILON, dtype=self.dtype, name='norm_out')(x))


class Encoder(_Stack):
  """Picture to latent grid; `num_blocks` residual blocks a level."""

  latent_channels: int

  @nn.compact
  def __call__(self, image: jax.Array) -> jax.Array:
    """[B, H, W, 3] in [-1, 1] -> [B, h, w, d] in `dtype`."""
    x = Conv(self.width, dtype=self.dtype, name='conv_in')(image)
    for level, multiplier in enumerate(self.multipliers):
      if level:
        x = Downsample(self.dtype, name=f'down{level - 1}')(x)
      for i in range(self.num_blocks):
        x = self._block(multiplier * self.width, f'level{level}_block{i}')(x)
    x = self._normalised(self._middle(x))
    return Conv(self.latent_channels, dtype=self.dtype, name='conv_out')(x)


class Decoder(_Stack):
  """Latent grid to the features that the picture is made of; `num_blocks` + 1 residual blocks a level."""

  @nn.compact
  def __call__(self, latent: jax.Array) -> jax.Array:
    """[B, h, w, d] -> [B, H, W, width] in `dtype`."""
    x = Conv(self.multipliers[-1] * self.width, dtype=self.dtype, name='conv_in')(latent)
    x = self._middle(x)
    # Levels count from the picture's size, as in the encoder.
    for level in reversed(range(len(self.multipliers))):
      for i in range(self.num_blocks + 1):
        x = self._block(self.multipliers[level] * self.width, f'level{level}_block{i}')(x)
      if level:
        x = Upsample(self.dtype, name=f'up{level}')(x)
    return self._normalised(x)


class Quantiser(nn.Module):
  """The codebook: parameter `codebook` [N, d], float32, at first uniform within `spread` of 0 (None: 1 / N)."""

  size: int
  spread: float | None = None

  @nn.compact
  def __call__(self, latent: jax.Array) -> Quantised:
    """[B, h, w, d] -> its nearest entries; see `Quantised`."""
    limit = 1 / self.size if self.spread is None else self.spread
    codebook = self.param('codebook', uniform_within(limit), (self.size, latent.shape[-1]), jnp.float32)
    latent = latent.astype(jnp.float32)
    indices = nearest(jax.lax.stop_gradient(latent), jax.lax.stop_gradient(codebook))
    entries = jnp.take(codebook, indices, axis=0)
    return Quantised(
      latent=latent + jax.lax.stop_gradient(entries - latent),
      indices=indices,
      codebook=jnp.square(entries - jax.lax.stop_gradient(latent)).mean(),
      commitment=jnp.square(jax.lax.stop_gradient(entries) - latent).mean(),
    )


def nearest(latent: jax.Array, codebook: jax.Array) -> jax.Array:
  """Which entry of `codebook` [N, d] is nearest to each vector of `latent` [..., d]: int32 [...], ties to the first."""
  # An accelerator's default, bfloat16 products, would choose other entries.
  products = jax.lax.dot_general(
    latent, codebook, (((latent.ndim - 1,), (1,)), ((), ())), precision=jax.lax.Precision.HIGHEST
  )
  lengths = jnp.square(codebook).sum(-1)
  # |z|^2 is the same for all entries.
  return jnp.argmin(lengths.reshape((1,) * (latent.ndim - 1) + (-1,)) - 2 * products, axis=-1).astype(jnp.int32)


class VQGAN(nn.Module):
  """The autoencoder; defaults are the published VQ-f4 (55,322,782 parameters).

  `model.apply(variables, image)` reconstructs; `method='encode'`, `'quantise'`, `'decode'` are its parts, and decoding
  is `'features'` and then `'paint'`.

  Attributes:
    width: channels at the picture's size, a multiple of 32.
    multipliers: of the width, a level each; between levels the picture is halved.
    num_blocks: residual blocks of an encoder level; the decoder's have one more.
    latent_channels: d.
    codebook_size: N.
    codebook_spread: entries are at first uniform within this of 0; None is the published 1 / N, out of which it takes a
      long training to spread.
    dtype: of the convolutions' work; parameters, norms' statistics, quantisation and results are float32.
    remat: recompute each block in the backward pass instead of keeping it: less memory, more time.
  """

  width: int = 128
  multipliers: tuple[int, ...] = (1, 2, 4)
  num_blocks: int = 2
  latent_channels: int = 3
  codebook_size: int = 8192
  codebook_spread: float | None = None
  dtype: Dtype = jnp.float32
  remat: bool = False

  def __post_init__(self):
    if self.width < GROUPS or self.width % GROUPS:
      raise UserError(f'width={self.width}; it must be a multiple of {GROUPS}, which its norms divide it by')
    if not self.multipliers or min(self.multipliers) < 1:
      raise UserError(f'multipliers={self.multipliers}; give a whole number from 1 for each level')
    check_at_least(1, self, 'num_blocks', 'latent_channels', 'codebook_size')
    super().__post_init__()

  @property
  def factor(self) -> int:
    """How many pixels of a side one latent stands for: 4 as published."""
    return 2 ** (len(self.multipliers) - 1)

  def setup(self):
    """Names the parts, which the methods share."""
    sizes = (self.width, self.multipliers, self.num_blocks, self.dtype, self.remat)
    self.encoder = Encoder(*sizes, self.latent_channels)
    self.to_latent = Conv(self.latent_channels, 1, dtype=self.dtype)
    self.quantiser = Quantiser(self.codebook_size, self.codebook_spread)
    self.from_latent = Conv(self.latent_channels, 1, dtype=self.dtype)
    self.decoder = Decoder(*sizes)
    self.to_image = Conv(3, dtype=self.dtype)

  def encode(self, image: jax.Array) -> jax.Array:
    """Picture [B, H, W, 3] in [-1, 1] -> latent float32 [B, h, w, d] before quantisation, h = H / factor."""
    if image.ndim != 4 or image.shape[-1] != 3 or any(side % self.factor for side in image.shape[1:3]):
      raise UserError(
        f'pictures of shape {image.shape} given to an autoencoder for [B, H, W, 3], H and W multiples of {self.factor}'
      )
    check_floats(image, 'an autoencoder')
    return self.to_latent(self.encoder(image)).astype(jnp.float32)

  def quantise(self, latent: jax.Array) -> Quantised:
    """Latent [B, h, w, d] -> its nearest entries of the codebook."""
    return self.quantiser(latent)

  def features(self, latent: jax.Array) -> jax.Array:
    """Quantised latent [B, h, w, d] -> what `paint` makes the picture of, [B, H, W, width] in `dtype`."""
    return self.decoder(self.from_latent(latent))

  def paint(self, features: jax.Array) -> jax.Array:
    """The last layer: `features` -> picture float32 [B, H, W, 3]. Needs no parameters but `to_image`."""
    return self.to_image(features).astype(jnp.float32)

  def decode(self, latent: jax.Array, *, quantise: bool = True) -> jax.Array:
    """Latent [B, h, w, d] -> picture float32 [B, H, W, 3], about [-1, 1], not clipped.

    Latents are quantised first, as those of `encode` and of a diffusion model need; without `quantise` they are
    decoded as they are.
    """
    return self.paint(self.features(self.quantise(latent).latent if quantise else latent))

  def __call__(self, image: jax.Array) -> tuple[jax.Array, Quantised]:
    """Picture [B, H, W, 3] in [-1, 1] -> its reconstruction, see `decode`, and what it was decoded from."""
    quantised = self.quantise(self.encode(image))
    return self.decode(quantised.latent, quantise=False), quantised


PLACEMENTS = ('true', 'legacy')


def quantiser_loss(quantised: Quantised, *, beta: float = 0.25, placement: str = 'true') -> jax.Array:
  """Both terms of the quantiser as one scalar; `placement` is of `beta`, one of PLACEMENTS.

  'true': codebook + beta * commitment (van den Oord et al. 2017, equation 3). 'legacy': beta * codebook + commitment,
  as the public code does by default, to agree with its own first version.
  """
  if placement not in PLACEMENTS:
    raise UserError(f'unknown loss.placement {placement!r}; choose from {", ".join(PLACEMENTS)}')
  if placement == 'true':
    return quantised.codebook + beta * quantised.commitment
  return beta * quantised.codebook + quantised.commitment
