"""AlexNet's features in torchvision's variant (Krizhevsky 2014, "one weird trick"), no classifier."""

# B batch | H,W pixels | C channels

import jax
from flax import linen as nn

from jaxface.max_pool import max_pool3x3

CHANNELS = (64, 192, 384, 256, 256)


class AlexNet(nn.Module):
  """Pictures, normalised as the weights were trained -> the five activations after ReLU.

  Attributes:
    precision: of the convolutions, as `jax.lax.Precision`; None is the backend's default.
  """

  precision: jax.lax.PrecisionLike = None

  @nn.compact
  def __call__(self, x_BHWC: jax.Array) -> tuple[jax.Array, ...]:
    """Floats [B, H, W, 3], sides of at least 31 -> five of [B, h, w, C], C as in `CHANNELS`."""
    taps = []
    for number, (size, stride, padding) in enumerate(((11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1)), 1):
      if number in (2, 3):
        x_BHWC = max_pool3x3(x_BHWC)
      conv = nn.Conv(
        CHANNELS[number - 1], (size, size), stride, padding, precision=self.precision, name=f'conv{number}'
      )
      x_BHWC = nn.relu(conv(x_BHWC))
      taps.append(x_BHWC)
    return tuple(taps)
