"""Layers that the diffusion networks and their first stage are made of, with PyTorch's semantics and initial values."""

# B batch | H,W pixels | h,w pixels out | I input channels | O output channels | C channels

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxface.conv import convolve
from jaxface.errors import UserError
from jaxface.layers import Dtype, spread
from jaxface.meshes import whole
from jaxface.models.group_norm import group_norm

# Of every norm: neighbouring channels share a mean and a variance.
GROUPS = 32

# PyTorch's default for kernels of convolutions and linear layers: uniform within +-1 / sqrt(fan in).
torch_init = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


def uniform_within(limit: float) -> nn.initializers.Initializer:
  """Uniform within +-limit."""
  return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -limit, limit)


def torch_bias_init(fan_in: int) -> nn.initializers.Initializer:
  """PyTorch's default for biases: uniform within +-1 / sqrt(fan in); `fan_in` is that of the layer's kernel."""
  return uniform_within(fan_in**-0.5)


class Conv(nn.Module):
  """Convolution with zero padding and bias.

  Parameters `kernel` [size, size, I, features] and `bias` [features] are float32, both initially uniform within
  +-1 / sqrt(size size I) as PyTorch draws them (zeros with `zero`); the work is done in `dtype`.

  Attributes:
    features: O.
    size: side of the kernel.
    stride: of both axes.
    pad: zeros on every side; default those that keep the picture's size at stride 1 (of an odd kernel).
    zero: start with a kernel and a bias of zeros.
  """

  features: int
  size: int = 3
  stride: int = 1
  pad: int | None = None
  zero: bool = False
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x_BHWI: jax.Array) -> jax.Array:
    """[B, H, W, I] -> [B, h, w, features] in `dtype`, h = floor((H + 2 pad - size) / stride) + 1."""
    shape = (self.size, self.size, x_BHWI.shape[-1], self.features)
    kernel = self.param('kernel', nn.initializers.zeros if self.zero else torch_init, shape, jnp.float32)
    x, kernel = x_BHWI.astype(self.dtype), whole(kernel.astype(self.dtype))
    pad = self.size // 2 if self.pad is None else self.pad
    if (self.size, self.stride, pad) == (1, 1, 0):
      y = x @ kernel[0, 0]
    else:
      y = convolve(x, kernel, stride=self.stride, pad=pad)
    bias_init = nn.initializers.zeros if self.zero else torch_bias_init(self.size**2 * x.shape[-1])
    bias = self.param('bias', bias_init, (self.features,), jnp.float32)
    return y + spread(bias, y)


class Linear(nn.Module):
  """x @ kernel + bias over the last axis; `kernel` [I, features] and `bias` [features] as `Conv` has them."""

  features: int
  use_bias: bool = True
  zero: bool = False
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., I] -> [..., features] in `dtype`."""
    kernel = self.param(
      'kernel', nn.initializers.zeros if self.zero else torch_init, (x.shape[-1], self.features), jnp.float32
    )
    y = x.astype(self.dtype) @ whole(kernel.astype(self.dtype))
    if not self.use_bias:
      return y
    bias_init = nn.initializers.zeros if self.zero else torch_bias_init(x.shape[-1])
    bias = self.param('bias', bias_init, (self.features,), jnp.float32)
    return y + spread(bias, y)


class GroupNorm(nn.Module):
  """Group normalisation of pictures, scale and shift of every channel; computed in float32 whatever `dtype` is.

  Parameters `scale` and `bias` [C] (ones and zeros).

  Attributes:
    groups: neighbouring channels that share a mean and a variance are C / groups; must divide C.
    epsilon: added to the variance.
  """

  groups: int = GROUPS
  epsilon: float = 1e-5
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x_BHWC: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H, W, C] in `dtype`."""
    channels = x_BHWC.shape[-1:]
    scale = self.param('scale', nn.initializers.ones, channels, jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, channels, jnp.float32)
    scale, bias = (vector[None, None, None] for vector in (scale, bias))
    return group_norm(x_BHWC, scale, bias, groups=self.groups, epsilon=self.epsilon, dtype=self.dtype)


def check_unet(
  model_channels: int, multipliers: tuple[int, ...], attention_factors: tuple[int, ...], head_channels: int
) -> None:
  """Raises UserError for widths that norms or attention heads do not divide, and for attention at levels there are not.

  Widths are `model_channels` times the multipliers, a level each, of half the size of the one before. Attention is
  where features are so many times smaller than the input as `attention_factors` say, and at the smallest level always.
  """
  if model_channels < 1 or model_channels % GROUPS or not multipliers or min(multipliers) < 1:
    raise UserError(
      f'model_channels={model_channels} and multipliers={multipliers}; channels must be a multiple of {GROUPS}, '
      f'such as {max(round(model_channels / GROUPS), 1) * GROUPS}, multipliers whole numbers from 1'
    )
  factors = [2**level for level in range(len(multipliers))]
  if unknown := set(attention_factors) - set(factors):
    raise UserError(
      f'attention_factors={attention_factors}: no level is {min(unknown)} times smaller; choose from {factors}'
    )
  for factor, multiplier in zip(factors, multipliers, strict=True):
    width = model_channels * multiplier
    if width % head_channels and factor in (*attention_factors, factors[-1]):
      raise UserError(f'{width} channels do not divide into heads of head_channels={head_channels}')


def check_sides(what: str, size: tuple[int, int], levels: int) -> None:
  """Raises UserError where a UNet of so many levels cannot halve both sides of its input, a `what`, so often."""
  step = 2 ** (levels - 1)
  if any(side < 1 or side % step for side in size):
    fitting = 'x'.join(str(max(round(side / step), 1) * step) for side in size)
    raise UserError(f'a {what} of {size[0]}x{size[1]}; sides must be multiples of {step}, such as {fitting}')


def timestep_embedding(t: jax.Array, width: int) -> jax.Array:
  """Sinusoids of timesteps [B] (integers or floats) -> float32 [B, width], cosines first (Ho et al. 2020).

  Frequencies are exp(-ln(10000) i / half) for i from 0 to half - 1, half = width // 2; `width` is even.
  """
  half = width // 2
  frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
  angles = t.astype(jnp.float32)[:, None] * frequencies[None]
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)
