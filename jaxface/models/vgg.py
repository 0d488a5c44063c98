"""VGG-16 and VGG-19 (Simonyan & Zisserman 2015) as feature extractors: any activation by its name, no classifier."""

# B batch | H,W pixels | C channels

import re

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxface.errors import UserError
from jaxface.layers import Dtype, SameConv
from jaxface.max_pool import max_pool2x2

VGG16 = (2, 2, 3, 3, 3)
VGG19 = (2, 2, 4, 4, 4)


class Vgg(nn.Module):
  """Pictures, normalised as the weights were trained -> the activations named by `taps`, in that order.

  Five groups of 3x3 convolutions with ReLU, a 2x2 max pool between groups. `relu3_2` is the second activation of the
  third group, at a quarter of the size; `conv3_2` the same before the ReLU. Nothing behind the last tap is computed.

  Attributes:
    taps: names of activations.
    convs: convolutions in each group, `VGG16` or `VGG19`.
    widths: channels of each group.
    precision: of the convolutions, as `jax.lax.Precision`; None is the backend's default.
    dtype: of the convolutions and of what they put out.
  """

  taps: tuple[str, ...]
  convs: tuple[int, ...] = VGG16
  widths: tuple[int, ...] = (64, 128, 256, 512, 512)
  precision: jax.lax.PrecisionLike = None
  dtype: Dtype = jnp.float32

  def __post_init__(self):
    known = {f'{kind}{group}_{i}' for kind in ('conv', 'relu') for group, i in self.layers}
    if not self.taps or not set(self.taps) <= known:
      last = 'relu{}_{}'.format(*self.layers[-1])
      raise UserError(f'taps={self.taps}: name one or more of conv1_1, relu1_1 ... {last}')
    super().__post_init__()

  @property
  def layers(self) -> list[tuple[int, int]]:
    """(group, number within it) of every convolution, counted from 1."""
    return [(group, i) for group, count in enumerate(self.convs, 1) for i in range(1, count + 1)]

  @property
  def used_layers(self) -> list[tuple[int, int]]:
    """The convolutions that the taps need."""
    needed = max(tuple(map(int, re.findall(r'\d+', tap))) for tap in self.taps)
    return [layer for layer in self.layers if layer <= needed]

  @nn.compact
  def __call__(self, x_BHWC: jax.Array) -> tuple[jax.Array, ...]:
    """Floats [B, H, W, 3], sides of at least 16 for all five groups -> floats [B, h, w, C], one for each tap."""
    found = {}
    for group, i in self.used_layers:
      if i == 1 and group > 1:
        x_BHWC = max_pool2x2(x_BHWC)
      name = f'conv{group}_{i}'
      conv = SameConv(self.widths[group - 1], 3, precision=self.precision, dtype=self.dtype, name=name)
      x_BHWC = found[name] = conv(x_BHWC)
      x_BHWC = found[f'relu{group}_{i}'] = nn.relu(x_BHWC)
    return tuple(found[tap] for tap in self.taps)
