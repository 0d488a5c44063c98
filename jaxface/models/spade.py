"""Spatially adaptive normalisation (SPADE, Park et al., CVPR 2019): a label map scales and shifts what is normalised.

Scale and shift depend on the label map only, so `Spade.maps` computes them without features: once for a whole sampling.
"""

# B batch, or 1 that stands for every picture | M,N size of the label map | H,W size of the features
# K channels of the label map | C channels

import flax
import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxface import resize
from jaxface.layers import Dtype
from jaxface.models.group_norm import group_norm
from jaxface.models.unet_layers import GROUPS, Conv


@flax.struct.dataclass
class Modulation:
  """What a label map does to normalised features x: x (1 + gamma) + beta; both [B, H, W, C]."""

  gamma: jax.Array
  beta: jax.Array


class Spade(nn.Module):
  """Group normalisation in 32 groups without parameters of its own, then the label map's scale and shift.

  Attributes:
    channels: C, a multiple of 32.
    hidden: channels of the convolution that scale and shift share.
    dtype: of the work and of the results; the normalisation is float32.
  """

  channels: int
  hidden: int = 128
  dtype: Dtype = jnp.float32

  def setup(self):
    """Names the layers, which both methods share."""
    self.shared = Conv(self.hidden, dtype=self.dtype)
    self.gamma = Conv(self.channels, dtype=self.dtype)
    self.beta = Conv(self.channels, dtype=self.dtype)

  def maps(self, mask_BMNK: jax.Array, size: tuple[int, int]) -> Modulation:
    """Label map [B, M, N, K], floats (one-hot, soft, or zeros for none) -> what it does to features of size (H, W)."""
    hidden = nn.relu(self.shared(resize.nearest(mask_BMNK, size)))
    return Modulation(self.gamma(hidden), self.beta(hidden))

  def __call__(self, x_BHWC: jax.Array, modulation: Modulation) -> jax.Array:
    """[B, H, W, C] -> [B, H, W, C] in `dtype`; a modulation of batch 1 is every picture's."""
    return group_norm(x_BHWC, modulation.gamma, modulation.beta, groups=GROUPS, offset=1.0, dtype=self.dtype)
