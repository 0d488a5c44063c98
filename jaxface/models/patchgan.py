"""The patch discriminator of Isola et al. 2017 with BatchNorm, as CompVis/taming-transformers has it for VQGAN."""

# B batch | H,W pixels | h,w grid of scores | I input channels | O output channels

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxface.conv import convolve
from jaxface.errors import UserError, check_at_least
from jaxface.layers import BatchNorm, Dtype, spread
from jaxface.models.unet_layers import torch_bias_init

# BatchNorm's scales at first: N(1, 0.02^2).
_near_one = lambda key, shape, dtype: 1 + 0.02 * jax.random.normal(key, shape, dtype)
# No layer has more channels than the first times this.
_WIDEST = 8


class Conv4x4(nn.Module):
  """4x4 convolution, zero padding 1; `kernel` [4, 4, I, features] from N(0, 0.02^2), `bias` as PyTorch draws it."""

  features: int
  stride: int
  use_bias: bool = False
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x_BHWI: jax.Array) -> jax.Array:
    """[B, H, W, I] -> [B, h, w, features] in `dtype`, h = (H - 2) // stride + 1."""
    shape = (4, 4, x_BHWI.shape[-1], self.features)
    kernel = self.param('kernel', nn.initializers.normal(0.02), shape, jnp.float32)
    y = convolve(x_BHWI.astype(self.dtype), kernel.astype(self.dtype), stride=self.stride, pad=1)
    if not self.use_bias:
      return y
    bias = self.param('bias', torch_bias_init(16 * x_BHWI.shape[-1]), (self.features,), jnp.float32)
    return y + spread(bias, y)


class PatchGAN(nn.Module):
  """How real each patch of a picture looks: logits, for the hinge loss above 1 real and below -1 made.

  Training: `model.apply(variables, image, train=True, mutable=['batch_stats'])`, real and made pictures in passes of
  their own, so that each is normalised by its own batch. BatchNorm's scales are initially N(1, 0.02^2), its shifts 0.

  Attributes:
    dim: channels after the first layer; every layer doubles them, up to eight times as many.
    num_layers: layers that halve the picture; 3 are published, and see patches of 70 pixels.
    dtype: of the convolutions' work; parameters, statistics and logits are float32.
    axis_name: the `pmap` axis whose replicas share BatchNorm's statistics; None under `jit`.
  """

  dim: int = 64
  num_layers: int = 3
  dtype: Dtype = jnp.float32
  axis_name: str | None = None

  def __post_init__(self):
    check_at_least(1, self, 'dim', 'num_layers')
    super().__post_init__()

  @property
  def least_side(self) -> int:
    """The smallest side of a picture, in pixels, that leaves a logit: 24 as published."""
    return 3 * 2**self.num_layers

  @nn.compact
  def __call__(self, image: jax.Array, train: bool = False) -> jax.Array:
    """[B, H, W, 3] in [-1, 1] -> float32 [B, h, w, 1]; 256x256 pixels give 30x30 logits."""
    if image.ndim != 4 or image.shape[-1] != 3 or min(image.shape[1:3]) < self.least_side:
      raise UserError(
        f'pictures of shape {image.shape} given to a discriminator for [B, H, W, 3], H and W at least {self.least_side}'
      )
    x = nn.leaky_relu(Conv4x4(self.dim, 2, True, self.dtype, name='conv0')(image), 0.2)
    for i in range(1, self.num_layers + 1):
      stride = 2 if i < self.num_layers else 1
      x = Conv4x4(self.dim * min(2**i, _WIDEST), stride, dtype=self.dtype, name=f'conv{i}')(x)
      norm = BatchNorm(0.9, 1e-5, scale_init=_near_one, axis_name=self.axis_name, dtype=self.dtype, name=f'norm{i}')
      x = norm(x, train=train)
      x = nn.leaky_relu(x, 0.2)
    return Conv4x4(1, 1, True, self.dtype, name='score')(x).astype(jnp.float32)
