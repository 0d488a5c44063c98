"""BeautyGAN (Li et al. 2018): a generator that exchanges the makeup of two faces, and its patch discriminators.

As the public PyTorch code (wtjiang98/BeautyGAN_pytorch) has them. Pictures are RGB in [-1, 1].
"""

# B batch | H,W pixels | I input channels | O output channels | C channels

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxface.conv import convolve, convolve_transpose
from jaxface.errors import UserError, check_at_least, check_floats
from jaxface.layers import Dtype, spread
from jaxface.models.unet_layers import GroupNorm, torch_bias_init, torch_init
from jaxface.spectral_norm import largest_singular_value, power_iteration

# PyTorch's xavier_normal_.
_xavier = nn.initializers.variance_scaling(1.0, 'fan_avg', 'normal')


class Conv(nn.Module):
  """Convolution without bias that keeps the size, or halves it with `stride` 2: `kernel` [size, size, I, features]."""

  features: int
  size: int
  stride: int = 1
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x_BHWI: jax.Array) -> jax.Array:
    """[B, H, W, I] -> [B, H / stride, W / stride, features] in `dtype`."""
    shape = (self.size, self.size, x_BHWI.shape[-1], self.features)
    kernel = self.param('kernel', _xavier, shape, jnp.float32).astype(self.dtype)
    return convolve(x_BHWI.astype(self.dtype), kernel, stride=self.stride, pad=(self.size - 1) // 2)


class ConvTranspose(nn.Module):
  """4x4 transposed convolution by stride 2 without bias: `kernel` [4, 4, features, I], not flipped."""

  features: int
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x_BHWI: jax.Array) -> jax.Array:
    """[B, H, W, I] -> [B, 2H, 2W, features] in `dtype`."""
    kernel = self.param('kernel', _xavier, (4, 4, self.features, x_BHWI.shape[-1]), jnp.float32)
    return convolve_transpose(x_BHWI.astype(self.dtype), kernel.astype(self.dtype), stride=2, pad=1)


def _norm(x: jax.Array, dtype: Dtype, name: str) -> jax.Array:
  """Instance normalisation with a scale and a bias a channel; a layer of the module that calls."""
  return GroupNorm(groups=x.shape[-1], dtype=dtype, name=name)(x)


def _norm_relu(x: jax.Array, dtype: Dtype, name: str) -> jax.Array:
  return nn.relu(_norm(x, dtype, name))


class Branch(nn.Module):
  """From one picture to features at half its size."""

  dim: int
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, image: jax.Array) -> jax.Array:
    """[B, H, W, 3] -> [B, H/2, W/2, 2 dim]."""
    x = _norm_relu(Conv(self.dim, 7, dtype=self.dtype, name='conv0')(image), self.dtype, 'norm0')
    return _norm_relu(Conv(2 * self.dim, 4, 2, self.dtype, name='conv1')(x), self.dtype, 'norm1')


class ResidualBlock(nn.Module):
  """x plus two normalised 3x3 convolutions of it; nothing after the sum."""

  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> the same shape."""
    features = x.shape[-1]
    y = _norm_relu(Conv(features, 3, dtype=self.dtype, name='conv0')(x), self.dtype, 'norm0')
    return x + _norm(Conv(features, 3, dtype=self.dtype, name='conv1')(y), self.dtype, 'norm1')


class Head(nn.Module):
  """From shared features to one of the two pictures."""

  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> float32 [B, H, W, 3] in [-1, 1]."""
    for i in range(2):
      x = _norm_relu(Conv(x.shape[-1], 3, dtype=self.dtype, name=f'conv{i}')(x), self.dtype, f'norm{i}')
    return jnp.tanh(Conv(3, 7, dtype=self.dtype, name='conv2')(x).astype(jnp.float32))


class BeautyGenerator(nn.Module):
  """Both directions of a makeup transfer at once; defaults are the published network (9,237,376 parameters).

  Two branches of their own weights, one trunk, two heads. Zero padding, no biases but the norms'. Initially kernels are
  Xavier normal and norms the identity.

  Attributes:
    dim: channels at full size.
    num_blocks: residual blocks, at a quarter of the size.
    dtype: of the convolutions' work; parameters, statistics of the norms and results are float32.
  """

  dim: int = 64
  num_blocks: int = 6
  dtype: Dtype = jnp.float32

  def __post_init__(self):
    check_at_least(1, self, 'dim')
    check_at_least(0, self, 'num_blocks')
    super().__post_init__()

  @nn.compact
  def __call__(self, source: jax.Array, reference: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The source wearing the reference's makeup, and the reference with the source's, that is, without.

    Args:
      source: [B, H, W, 3] in [-1, 1], a face without makeup; H and W are multiples of 4.
      reference: of the same shape and range, a face with makeup.

    Returns:
      (made_up, cleaned), both float32 [B, H, W, 3] in [-1, 1].
    """
    shape = source.shape
    if shape != reference.shape or len(shape) != 4 or shape[-1] != 3 or shape[1] % 4 or shape[2] % 4:
      raise UserError(
        f'source {shape} and reference {reference.shape} given to a generator for two pictures [B, H, W, 3] of one '
        f'shape, H and W multiples of 4'
      )
    check_floats(source, 'a generator')
    check_floats(reference, 'a generator')
    branches = [
      Branch(self.dim, self.dtype, name=name)(image) for name, image in (('source', source), ('reference', reference))
    ]
    x = Conv(4 * self.dim, 4, 2, self.dtype, name='mix')(jnp.concatenate(branches, -1))
    x = _norm_relu(x, self.dtype, 'mix_norm')
    for i in range(self.num_blocks):
      x = ResidualBlock(self.dtype, name=f'block{i}')(x)
    for i, width in enumerate((2 * self.dim, self.dim)):
      x = _norm_relu(ConvTranspose(width, self.dtype, name=f'up{i}')(x), self.dtype, f'up{i}_norm')
    return Head(self.dtype, name='made_up')(x), Head(self.dtype, name='cleaned')(x)


class SpectralConv(nn.Module):
  """4x4 convolution, zero padding 1, whose kernel is divided by its largest singular value (as [16 I, features]).

  Parameters `kernel` [4, 4, I, features] and `bias` [features], initially as PyTorch draws them, uniform in
  +-1 / sqrt(16 I). The collection 'spectral' holds the singular vectors `u` [features] and `v` [16 I].

  Flax's `SpectralNorm` keeps no v, iterates in evaluation as well, and multiplies in an accelerator's own precision.
  """

  features: int
  stride: int = 1
  use_bias: bool = True
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x_BHWI: jax.Array, train: bool) -> jax.Array:
    """[B, H, W, I] -> [B, h, w, features] in `dtype`; with `train` 'spectral' must be mutable and moves a step."""
    fan_in = 16 * x_BHWI.shape[-1]
    kernel = self.param('kernel', torch_init, (4, 4, x_BHWI.shape[-1], self.features), jnp.float32)
    matrix = kernel.reshape(fan_in, self.features)
    draw = lambda: jax.random.normal(self.make_rng('params'), (self.features,), jnp.float32)
    u, v = self.variable('spectral', 'u', draw), self.variable('spectral', 'v', jnp.zeros, (fan_in,), jnp.float32)
    if train or self.is_initializing():
      u.value, v.value = power_iteration(matrix, u.value)
    kernel = (kernel / largest_singular_value(matrix, u.value, v.value)).astype(self.dtype)
    y = convolve(x_BHWI.astype(self.dtype), kernel, stride=self.stride, pad=1)
    if not self.use_bias:
      return y
    bias = self.param('bias', torch_bias_init(fan_in), (self.features,), jnp.float32)
    return y + spread(bias, y)


class PatchDiscriminator(nn.Module):
  """How much each patch looks like a picture of its domain: scores for least squares, 1 real and 0 made.

  Training: `model.apply(variables, image, train=True, mutable=['spectral'])`; every forward pass then moves the
  singular vectors by one power iteration of the weights (the public code does so in evaluation as well), which
  depends on no picture. The gradient flows through the singular value, with the vectors constant.

  Attributes:
    dim: channels after the first layer; every layer doubles them.
    num_layers: layers that halve the picture; 3 are published.
    dtype: of the convolutions' work; parameters, singular vectors and scores are float32.
  """

  dim: int = 64
  num_layers: int = 3
  dtype: Dtype = jnp.float32

  def __post_init__(self):
    check_at_least(1, self, 'dim', 'num_layers')
    super().__post_init__()

  @nn.compact
  def __call__(self, image: jax.Array, train: bool = False) -> jax.Array:
    """[B, H, W, 3] in [-1, 1] -> float32 [B, h, w, 1]; 256x256 pixels give 30x30 scores."""
    least = 3 * 2**self.num_layers
    if image.ndim != 4 or image.shape[-1] != 3 or min(image.shape[1:3]) < least:
      raise UserError(
        f'pictures of shape {image.shape} given to a discriminator for [B, H, W, 3], H and W at least {least}'
      )
    x = image
    for i in range(self.num_layers + 1):
      stride = 2 if i < self.num_layers else 1
      x = SpectralConv(self.dim * 2**i, stride, dtype=self.dtype, name=f'conv{i}')(x, train)
      x = nn.leaky_relu(x, 0.01)
    return SpectralConv(1, use_bias=False, dtype=self.dtype, name='score')(x, train).astype(jnp.float32)
