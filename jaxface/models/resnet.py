"""ResNet-18 (He et al. 2016) as torchvision has it, without classifier: a feature extractor at three scales."""

# B batch | H,W pixels | I input channels | O output channels

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from jaxface import conv
from jaxface.layers import BatchNorm, Dtype
from jaxface.max_pool import max_pool3x3
from jaxface.plain_conv import LAYOUT


def convolve(x_BHWI: jax.Array, kernel: jax.Array, stride: int = 1, precision: lax.PrecisionLike = None) -> jax.Array:
  """Cross-correlation by a kernel [k, k, I, O] of odd k, k // 2 zeros on every side, as PyTorch pads: no bias.

  -> [B, ceil(H / stride), ceil(W / stride), O]. Flax's 'SAME' puts a stride's uneven padding elsewhere. `precision` is
  that of the products, as `jax.lax.Precision`; None is the backend's default.
  """
  size = kernel.shape[0]
  if size > 1:
    # Blocks would take BiSeNet 10 % longer: max pools, and norms beside shortcuts, take them apart again.
    return conv.convolve(x_BHWI, kernel, stride=stride, pad=size // 2, precision=precision, blocks=False)
  by_product = functools.partial(_by_product, stride, precision=precision)
  if stride == 1:
    return by_product(x_BHWI, kernel)
  # XLA for GPUs dies of a product of every other pixel: github.com/openxla/xla/issues/47381.
  by_window = functools.partial(_by_window, stride, precision=precision)
  return lax.platform_dependent(x_BHWI, kernel, cuda=by_window, rocm=by_window, default=by_product)


def _by_window(stride: int, x_BHWI: jax.Array, kernel: jax.Array, precision: lax.PrecisionLike = None) -> jax.Array:
  return lax.conv_general_dilated(
    x_BHWI, kernel, (stride, stride), 'VALID', dimension_numbers=LAYOUT, precision=precision
  )


def _by_product(stride: int, x_BHWI: jax.Array, kernel: jax.Array, precision: lax.PrecisionLike = None) -> jax.Array:
  """On CPU the kernel gradient of a convolution is many times slower."""
  contracted = (((3,), (0,)), ((), ()))
  return lax.dot_general(x_BHWI[:, ::stride, ::stride], kernel[0, 0], contracted, precision=precision)


# How public code draws ResNets, and the layers that are put on them (there: kaiming_normal with a = 1).
he_fan_out = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')
lecun_fan_in = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal')


class Conv(nn.Module):
  """Convolution without bias, see `convolve`: parameter `kernel` [size, size, I, features], float32."""

  features: int
  size: int = 1
  stride: int = 1
  kernel_init: nn.initializers.Initializer = lecun_fan_in
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x_BHWI: jax.Array) -> jax.Array:
    """[B, H, W, I] -> [B, ceil(H / stride), ceil(W / stride), features] in `dtype`."""
    shape = (self.size, self.size, x_BHWI.shape[-1], self.features)
    kernel = self.param('kernel', self.kernel_init, shape, jnp.float32)
    return convolve(x_BHWI.astype(self.dtype), kernel.astype(self.dtype), self.stride)


class ConvNorm(nn.Module):
  """`Conv`, BatchNorm with PyTorch's constants, and ReLU unless `relu` is off."""

  features: int
  size: int = 3
  stride: int = 1
  relu: bool = True
  kernel_init: nn.initializers.Initializer = lecun_fan_in
  dtype: Dtype = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x_BHWI: jax.Array, train: bool) -> jax.Array:
    """[B, H, W, I] -> [B, ceil(H / stride), ceil(W / stride), features] in `dtype`."""
    x = Conv(self.features, self.size, self.stride, self.kernel_init, self.dtype, name='conv')(x_BHWI)
    norm = BatchNorm(momentum=0.9, epsilon=1e-5, axis_name=self.axis_name, dtype=self.dtype, name='norm')
    x = norm(x, train=train)
    return nn.relu(x) if self.relu else x


class BasicBlock(nn.Module):
  """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""

  features: int
  stride: int = 1
  dtype: Dtype = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features]."""
    options = {'kernel_init': he_fan_out, 'dtype': self.dtype, 'axis_name': self.axis_name}
    y = ConvNorm(self.features, 3, self.stride, **options, name='first')(x, train)
    y = ConvNorm(self.features, 3, relu=False, **options, name='second')(y, train)
    if self.stride != 1 or x.shape[-1] != self.features:
      x = ConvNorm(self.features, 1, self.stride, relu=False, **options, name='shortcut')(x, train)
    return nn.relu(x + y)


class Features(NamedTuple):
  """What ResNet-18 sees at an eighth, a sixteenth and a thirty-second of the picture's size, rounded up."""

  at_8: jax.Array
  at_16: jax.Array
  at_32: jax.Array


class ResNet18(nn.Module):
  """The convolutional part of ResNet-18: stem, max pool and four layers of two blocks, `widths` channels each."""

  widths: tuple[int, int, int, int] = (64, 128, 256, 512)
  dtype: Dtype = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, image: jax.Array, train: bool = False) -> Features:
    """Pictures [B, H, W, 3], normalised by ImageNet's mean and deviation -> features of layers 2, 3 and 4."""
    options = {'dtype': self.dtype, 'axis_name': self.axis_name}
    x = ConvNorm(self.widths[0], 7, 2, kernel_init=he_fan_out, **options, name='stem')(image, train)
    x = max_pool3x3(x, ((1, 1), (1, 1)))
    layers = []
    for layer, width in enumerate(self.widths, start=1):
      for block in range(2):
        stride = 2 if layer > 1 and block == 0 else 1
        x = BasicBlock(width, stride, **options, name=f'layer{layer}_{block}')(x, train)
      layers.append(x)
    return Features(*layers[1:])
