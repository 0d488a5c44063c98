"""BiSeNet (Yu et al., ECCV 2018) as the public face parser has it: ResNet-18 context path, no spatial path of its own.

The public code (zllrunning/face-parsing.PyTorch) takes the ResNet's features at an eighth of the size for the spatial
path's.
"""

# B batch | H,W pixels | C channels | K classes

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxface import labels, resize
from jaxface.errors import UserError, check_floats
from jaxface.layers import Dtype, spread
from jaxface.models.resnet import Conv, ConvNorm, ResNet18

# What inputs are normalised by: mean and standard deviation of ImageNet's RGB in [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Logits(NamedTuple):
  """Class scores of every pixel before softmax, each float32 [B, H, W, K].

  Attributes:
    main: the prediction.
    aux8: of the context features at an eighth of the size, for training only; None where they were not asked for.
    aux16: of those at a sixteenth, likewise.
  """

  main: jax.Array
  aux8: jax.Array | None = None
  aux16: jax.Array | None = None


class Widths(NamedTuple):
  """Channels of the network's parts."""

  resnet_widths: tuple[int, int, int, int]
  context_width: int
  fusion_width: int
  squeeze_width: int
  head_width: int
  aux_width: int


def widths(multiplier: float = 1.0) -> Widths:
  """The published widths times `multiplier`, rounded, at least 1: 0.25 makes a network for quick experiments."""
  if not multiplier > 0:
    raise UserError(f'the width multiplier must be positive, not {multiplier}')

  def scaled(width: int) -> int:
    return max(1, round(multiplier * width))

  return Widths(tuple(map(scaled, (64, 128, 256, 512))), *map(scaled, (128, 256, 64, 256, 64)))


PUBLISHED = widths()


def normalise(image: jax.Array) -> jax.Array:
  """RGB pictures [..., 3] in [0, 1] -> what the network takes: ImageNet's mean 0 and deviation 1, float32."""
  shape = (1,) * (image.ndim - 1) + (3,)
  mean, std = (jnp.asarray(values, jnp.float32).reshape(shape) for values in (IMAGENET_MEAN, IMAGENET_STD))
  return (image.astype(jnp.float32) - mean) / std


def _mean_pixel(x: jax.Array) -> jax.Array:
  """[B, H, W, C] -> [B, 1, 1, C] in x's dtype."""
  return x.mean((1, 2), keepdims=True, dtype=jnp.float32).astype(x.dtype)


class Attention(nn.Module):
  """Attention refinement: 3x3 convolution, its channels scaled by a gate that sees their means."""

  features: int
  dtype: Dtype
  axis_name: str | None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """[B, H, W, C] -> [B, H, W, features]."""
    options = {'dtype': self.dtype, 'axis_name': self.axis_name}
    x = ConvNorm(self.features, 3, **options, name='conv')(x, train)
    gate = ConvNorm(self.features, 1, relu=False, **options, name='gate')(_mean_pixel(x), train)
    return x * spread(nn.sigmoid(gate), x)


class ContextPath(nn.Module):
  """ResNet-18 whose deep features, refined, come back up to an eighth of the size."""

  resnet_widths: tuple[int, int, int, int]
  features: int
  dtype: Dtype
  axis_name: str | None

  @nn.compact
  def __call__(self, image: jax.Array, train: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalised [B, H, W, 3] -> the ResNet's features at 1/8, and the context's at 1/8 and 1/16 (sides rounded up)."""
    options = {'dtype': self.dtype, 'axis_name': self.axis_name}
    at_8, at_16, at_32 = ResNet18(self.resnet_widths, **options, name='resnet')(image, train)
    whole = ConvNorm(self.features, 1, **options, name='whole')(_mean_pixel(at_32), train)
    context = Attention(self.features, **options, name='refine32')(at_32, train)
    context = context + spread(whole, context)
    context = resize.nearest(context, at_16.shape[1:3])
    context_16 = ConvNorm(self.features, 3, **options, name='up16')(context, train)
    context = Attention(self.features, **options, name='refine16')(at_16, train) + context_16
    context = resize.nearest(context, at_8.shape[1:3])
    return at_8, ConvNorm(self.features, 3, **options, name='up8')(context, train), context_16


class Fusion(nn.Module):
  """Feature fusion: spatial and context features mixed, then channels raised by a gate that sees their means."""

  features: int
  squeeze: int
  dtype: Dtype
  axis_name: str | None

  @nn.compact
  def __call__(self, spatial: jax.Array, context: jax.Array, train: bool) -> jax.Array:
    """[B, h, w, C] and [B, h, w, C'] -> [B, h, w, features]."""
    x = jnp.concatenate([spatial, context], -1)
    x = ConvNorm(self.features, 1, dtype=self.dtype, axis_name=self.axis_name, name='mix')(x, train)
    gate = nn.relu(Conv(self.squeeze, dtype=self.dtype, name='squeeze')(_mean_pixel(x)))
    gate = Conv(self.features, dtype=self.dtype, name='excite')(gate)
    return x * spread(nn.sigmoid(gate), x) + x


class Head(nn.Module):
  """From features to class scores at the picture's size."""

  features: int
  num_classes: int
  dtype: Dtype
  axis_name: str | None

  @nn.compact
  def __call__(self, x: jax.Array, size: tuple[int, int], train: bool) -> jax.Array:
    """[B, h, w, C] -> float32 [B, *size, K]."""
    x = ConvNorm(self.features, 3, dtype=self.dtype, axis_name=self.axis_name, name='conv')(x, train)
    x = Conv(self.num_classes, dtype=self.dtype, name='classes')(x)
    return resize.bilinear(x.astype(jnp.float32), size, align_corners=True)


class BiSeNet(nn.Module):
  """The face parser; defaults are the published network (13,300,416 parameters).

  Prediction: `model.apply(variables, image).main`. Training: `model.apply(variables, image, train=True,
  mutable=['batch_stats'])`, with at least two pictures: the gates' BatchNorm sees one value a picture.

  Attributes:
    num_classes: K.
    resnet_widths: channels of the ResNet's four layers.
    context_width: channels of the context path's refined features.
    fusion_width: channels of the fused features.
    squeeze_width: channels inside the fusion's gate.
    head_width: channels of the main head.
    aux_width: channels of the auxiliary heads.
    dtype: of the convolutions' work; parameters, statistics and logits are float32.
    axis_name: the `pmap` axis whose replicas share BatchNorm's statistics; None under `jit`.
  """

  num_classes: int = labels.NUM_CLASSES
  resnet_widths: tuple[int, int, int, int] = PUBLISHED.resnet_widths
  context_width: int = PUBLISHED.context_width
  fusion_width: int = PUBLISHED.fusion_width
  squeeze_width: int = PUBLISHED.squeeze_width
  head_width: int = PUBLISHED.head_width
  aux_width: int = PUBLISHED.aux_width
  dtype: Dtype = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, image: jax.Array, *, train: bool = False, auxiliary: bool = True) -> Logits:
    """Scores of every pixel.

    Args:
      image: [B, H, W, 3], RGB normalised by `normalise`. H and W are at least 32; any size works as in the public code,
        multiples of 32 lose nothing at the edges. Square or not, 512 is what the public weights were made for.
      train: normalise with the batch's statistics and update the moving ones (collection 'batch_stats').
      auxiliary: also compute the auxiliary heads; prediction does without them.
    """
    if image.ndim != 4 or image.shape[-1] != 3 or min(image.shape[1:3]) < 32:
      raise UserError(f'pictures of shape {image.shape} given to a parser for [B, H, W, 3], H and W at least 32')
    check_floats(image, 'a parser')
    size = image.shape[1:3]
    options = {'dtype': self.dtype, 'axis_name': self.axis_name}
    context = ContextPath(self.resnet_widths, self.context_width, **options, name='context')
    at_8, context_8, context_16 = context(image, train)
    fused = Fusion(self.fusion_width, self.squeeze_width, **options, name='fusion')(at_8, context_8, train)
    main = Head(self.head_width, self.num_classes, **options, name='head')(fused, size, train)
    if not auxiliary:
      return Logits(main)
    aux8 = Head(self.aux_width, self.num_classes, **options, name='aux8')(context_8, size, train)
    aux16 = Head(self.aux_width, self.num_classes, **options, name='aux16')(context_16, size, train)
    return Logits(main, aux8, aux16)
