"""Face-mask VAE: one encoder, a decoder for the face and one for its mask (Toledo & Antonelo, ENIAC 2021).

Every encoder stage halves the picture until one pixel is left; the decoders retrace those sizes back.
"""

# B batch | S picture size | C channels | D latent dimensions

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxface.errors import UserError, check_at_least, check_floats
from jaxface.layers import BatchNormElu, Conv3x3, ConvTranspose3x3, Dtype
from jaxface.max_pool import max_pool2x2

SAMPLINGS = ('gaussian', 'reference')


class Prediction(NamedTuple):
  """What the network says about a batch; float32.

  Attributes:
    image: [B, S, S, 3] in [0, 1], the decoded face on the input's background.
    decoded: [B, S, S, 3] in [0, 1], the decoded picture as it is.
    mask: [B, S, S, 1] in [0, 1], predicted; None without mask decoder.
    mask_logits: the mask before its sigmoid; None without mask decoder.
    mean: [B, D], the posterior's mean.
    log_sigma: [B, D], the logarithm of the posterior's standard deviation.
  """

  image: jax.Array
  decoded: jax.Array
  mask: jax.Array | None
  mask_logits: jax.Array | None
  mean: jax.Array
  log_sigma: jax.Array


class Widths(NamedTuple):
  """Channels of the network's stages: of each convolution of an encoder stage, and one number per decoder stage."""

  encoder_widths: tuple[tuple[int, ...], ...]
  decoder_widths: tuple[int, ...]
  mask_widths: tuple[int, ...]


def stage_sizes(image_size: int) -> tuple[int, ...]:
  """Sizes the encoder passes through: `image_size`, halved and rounded down until 1 (144, 72, 36, 18, 9, 4, 2, 1)."""
  return tuple(image_size >> stage for stage in range(image_size.bit_length()))


def stage_widths(image_size: int, multiplier: float = 1.0) -> Widths:
  """The published widths, which are for 96..191 pixels, with deep stages dropped or added to fit `image_size`.

  `multiplier` scales every width, rounded, to at least 1: 0.25 makes a network for quick experiments.
  """
  if image_size < 16:
    raise UserError(f'image_size={image_size} is too small for the face-mask VAE; the smallest is 16')
  if not multiplier > 0:
    raise UserError(f'the width multiplier must be positive, not {multiplier}')
  stages = len(stage_sizes(image_size)) - 1

  def scaled(widths):
    return tuple(max(1, round(multiplier * width)) for width in widths)

  shallow = ((32, 32), (64, 64), (128, 128), (256, 256))[: stages - 1]
  deep = ((256,),) * (stages - 1 - len(shallow))
  return Widths(
    tuple(scaled(widths) for widths in (*shallow, *deep, (512,))),
    scaled((256,) * (stages - 4) + (128, 64, 32, 32)),
    scaled((32,) * stages),
  )


PUBLISHED = stage_widths(144)


class Block(nn.Module):
  """Convolution, BatchNorm and ELU; `up` makes it a transposed convolution by stride 2, see `ConvTranspose3x3`."""

  width: int
  up: bool = False
  odd: bool = False
  dtype: Dtype = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """[B, s, s, C] -> [B, s, s, width], or with `up` [B, 2s, 2s, width], or with `odd` too one pixel more."""
    if self.up:
      conv = ConvTranspose3x3(self.width, self.odd, self.dtype, name='conv')
    else:
      conv = Conv3x3(self.width, self.dtype, name='conv')
    x, shift = conv.parts(x)
    return BatchNormElu(axis_name=self.axis_name, dtype=self.dtype, name='norm')(x, train=train, shift=shift)


class Encoder(nn.Module):
  """Blocks and max pools down to one pixel, then a hidden dense layer and the posterior's two heads (float32)."""

  widths: tuple[tuple[int, ...], ...]
  latent_dim: int
  dtype: Dtype
  axis_name: str | None
  remat: bool

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
    """Image [B, S, S, 3] in [0, 1] -> mean and log sigma of the latent, each [B, D]."""
    block = _block(self.remat)
    for s, widths in enumerate(self.widths):
      for b, width in enumerate(widths):
        x = block(width, dtype=self.dtype, axis_name=self.axis_name, name=f'stage_{s}_block_{b}')(x, train)
      x = max_pool2x2(x)

    def dense(name):
      return nn.Dense(self.latent_dim, kernel_init=nn.initializers.glorot_uniform(), name=name)

    h_BD = nn.elu(dense('hidden')(x.astype(jnp.float32).reshape(x.shape[0], -1)))
    return dense('mean')(h_BD), dense('log_sigma')(h_BD)


class Decoder(nn.Module):
  """Pairs of blocks up through `sizes` (ascending, without the latent's 1), then a convolution to the logits."""

  widths: tuple[int, ...]
  sizes: tuple[int, ...]
  channels: int
  dtype: Dtype
  axis_name: str | None
  remat: bool

  @nn.compact
  def __call__(self, z_BD: jax.Array, train: bool) -> jax.Array:
    """Latent [B, D] -> logits [B, S, S, channels], float32."""
    block = _block(self.remat)
    options = {'dtype': self.dtype, 'axis_name': self.axis_name}
    x = z_BD[:, None, None, :]
    for s, (width, size) in enumerate(zip(self.widths, self.sizes, strict=True)):
      x = block(width, up=True, odd=size % 2 == 1, **options, name=f'stage_{s}_up')(x, train)
      x = block(width, **options, name=f'stage_{s}_refine')(x, train)
    return Conv3x3(self.channels, self.dtype, name='out')(x).astype(jnp.float32)


def _block(remat: bool) -> type[Block]:
  return nn.remat(Block, static_argnums=(2,)) if remat else Block


class FaceMaskVAE(nn.Module):
  """The face-mask VAE; defaults are the published network (9,337,188 numbers with the moving statistics).

  Prediction: `model.apply(variables, image)`. Training: `model.apply(variables, image, mask=mask, noise=noise,
  train=True, mutable=['batch_stats'])`.

  Attributes:
    image_size: S, at least 16. Pictures are square.
    encoder_widths: channels of every convolution, grouped into the stages that end in a max pool; `stage_widths` makes
      them, and the decoders', for any size.
    decoder_widths: channels of the image decoder's stages, deepest first.
    mask_widths: channels of the mask decoder's stages; empty or None for a network without mask decoder.
    latent_dim: D.
    sampling: 'gaussian', z = mean + noise * exp(log_sigma), or 'reference', z = mean + noise * log_sigma, which is what
      the public code does.
    dtype: of the convolutions' work; parameters, statistics and results are float32.
    axis_name: the `pmap` axis whose replicas share BatchNorm's statistics; None under `jit`.
    remat: recompute each block in the backward pass instead of keeping it: less memory, more time.
  """

  image_size: int = 144
  encoder_widths: tuple[tuple[int, ...], ...] = PUBLISHED.encoder_widths
  decoder_widths: tuple[int, ...] = PUBLISHED.decoder_widths
  mask_widths: tuple[int, ...] | None = PUBLISHED.mask_widths
  latent_dim: int = 512
  sampling: str = 'gaussian'
  dtype: Dtype = jnp.float32
  axis_name: str | None = None
  remat: bool = False

  def __post_init__(self):
    if self.sampling not in SAMPLINGS:
      raise UserError(f'unknown sampling {self.sampling!r}; choose from {", ".join(SAMPLINGS)}')
    if self.image_size < 16:
      raise UserError(f'image_size={self.image_size} is too small for the face-mask VAE; the smallest is 16')
    check_at_least(1, self, 'latent_dim')
    stages = len(stage_sizes(self.image_size)) - 1
    for name in ('encoder_widths', 'decoder_widths', 'mask_widths'):
      widths = getattr(self, name)
      if len(widths or ()) != stages and (name != 'mask_widths' or widths):
        raise UserError(
          f'{name} has {len(widths or ())} stages, but {self.image_size} pixels are halved {stages} times on the way '
          f'to one; stage_widths({self.image_size}) gives widths that fit'
        )
    super().__post_init__()

  def setup(self):
    """Names the three parts, which the methods share."""
    options = {'dtype': self.dtype, 'axis_name': self.axis_name, 'remat': self.remat}
    sizes = stage_sizes(self.image_size)[-2::-1]
    self.encoder = Encoder(self.encoder_widths, self.latent_dim, **options)
    self.image_decoder = Decoder(self.decoder_widths, sizes, 3, **options)
    self.mask_decoder = Decoder(self.mask_widths, sizes, 1, **options) if self.mask_widths else None

  def encode(self, image: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
    """Image [B, S, S, 3] in [0, 1] -> the posterior's mean and log sigma, each [B, D]."""
    expected = (self.image_size, self.image_size, 3)
    if image.shape[1:] != expected:
      raise UserError(f'pictures of shape {image.shape} given to a network for [B, {", ".join(map(str, expected))}]')
    check_floats(image, 'a face-mask VAE')
    return self.encoder(image, train)

  def decode(self, z: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array | None]:
    """Latent [B, D] -> picture [B, S, S, 3] and mask [B, S, S, 1] (None without mask decoder), both in [0, 1]."""
    decoded, mask_logits = self._decode(z, train)
    return decoded, None if mask_logits is None else nn.sigmoid(mask_logits)

  def _decode(self, z: jax.Array, train: bool) -> tuple[jax.Array, jax.Array | None]:
    decoded = nn.sigmoid(self.image_decoder(z, train))
    return decoded, None if self.mask_decoder is None else self.mask_decoder(z, train)

  def __call__(
    self,
    image: jax.Array,
    *,
    mask: jax.Array | None = None,
    noise: jax.Array | None = None,
    train: bool = False,
  ) -> Prediction:
    """Encodes, samples and decodes a batch.

    Args:
      image: [B, S, S, 3] in [0, 1].
      mask: [B, S, S, 1] in [0, 1], the true mask, which then composites `Prediction.image` in place of the predicted
        one (as training wants it). Given neither a mask nor a mask decoder, `image` is `decoded`.
      noise: standard normal [B, D]; without it z is the posterior's mean.
      train: normalise with the batch's statistics and update the moving ones (collection 'batch_stats').
    """
    mean, log_sigma = self.encode(image, train)
    z = mean
    if noise is not None:
      z = mean + noise * (jnp.exp(log_sigma) if self.sampling == 'gaussian' else log_sigma)
    decoded, mask_logits = self._decode(z, train)
    predicted = None if mask_logits is None else nn.sigmoid(mask_logits)
    blend = predicted if mask is None else mask
    composite = decoded if blend is None else decoded * blend + image * (1 - blend)
    return Prediction(composite, decoded, predicted, mask_logits, mean, log_sigma)
