"""SqueezeNet 1.1's features (Iandola et al. 2016) as torchvision has them, no classifier."""

# B batch | H,W pixels | C channels

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxface.max_pool import hanging_over, max_pool3x3

# Squeezed and expanded channels of the modules fire2 ... fire9; each expands to twice its second number.
FIRES = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))
CHANNELS = (64, 128, 256, 384, 384, 512, 512)

_POOLED_BEFORE = ('fire2', 'fire4', 'fire6')
_TAPS = ('fire3', 'fire5', 'fire6', 'fire7', 'fire8', 'fire9')


class Fire(nn.Module):
  """A 1x1 convolution to few channels, then 1x1 and 3x3 ones side by side; ReLU after each."""

  squeezed: int
  expanded: int
  precision: jax.lax.PrecisionLike = None

  @nn.compact
  def __call__(self, x_BHWC: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H, W, 2 * expanded]."""

    def conv(name, features, size, x):
      return nn.relu(nn.Conv(features, (size, size), precision=self.precision, name=name)(x))

    x_BHWC = conv('squeeze', self.squeezed, 1, x_BHWC)
    sides = conv('expand1x1', self.expanded, 1, x_BHWC), conv('expand3x3', self.expanded, 3, x_BHWC)
    return jnp.concatenate(sides, -1)


class SqueezeNet(nn.Module):
  """Pictures, normalised as the weights were trained -> the seven activations that LPIPS compares.

  Attributes:
    precision: of the convolutions, as `jax.lax.Precision`; None is the backend's default.
  """

  precision: jax.lax.PrecisionLike = None

  @nn.compact
  def __call__(self, x_BHWC: jax.Array) -> tuple[jax.Array, ...]:
    """Floats [B, H, W, 3], sides of at least 17 -> seven of [B, h, w, C], C as in `CHANNELS`."""
    x_BHWC = nn.relu(nn.Conv(64, (3, 3), 2, 'VALID', precision=self.precision, name='conv1')(x_BHWC))
    taps = [x_BHWC]
    for number, (squeezed, expanded) in enumerate(FIRES, 2):
      name = f'fire{number}'
      if name in _POOLED_BEFORE:
        x_BHWC = max_pool3x3(x_BHWC, hanging_over(x_BHWC))
      x_BHWC = Fire(squeezed, expanded, self.precision, name=name)(x_BHWC)
      if name in _TAPS:
        taps.append(x_BHWC)
    return tuple(taps)
