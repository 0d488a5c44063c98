"""Convolutions as XLA has them, and where their windows lie."""

# B batch | H,W pixels of x | h,w pixels of y | I channels of x | O channels of y

from typing import NamedTuple

import jax
from jax import lax

# Of pictures, kernels and results, for `lax.conv_general_dilated`.
LAYOUT = ('NHWC', 'HWIO', 'NHWC')


class Geometry(NamedTuple):
  """Where y's pixels lie on x's: `stride` apart, the first window beginning `pad` before x's first pixel.

  `precision` is that of an accelerator's products; a CPU's are always exact. `blocks`: whether a TPU may
  take blocks of pixels as one.
  """

  stride: int
  pad: int
  height: int
  width: int
  out_height: int
  out_width: int
  size: int = 3
  precision: lax.PrecisionLike = None
  blocks: bool = True

  def padding(self) -> tuple[tuple[int, int], tuple[int, int]]:
    """Zeros before and after x's rows and columns that make it yield exactly y's."""
    sides = ((self.height, self.out_height), (self.width, self.out_width))
    return tuple((self.pad, self.stride * (out - 1) + self.size - side - self.pad) for side, out in sides)

  def padded(self) -> bool:
    """Whether y's pixels see any zeros around x."""
    return any(any(before_and_after) for before_and_after in self.padding())

  def with_spare_row(self) -> 'Geometry':
    """For y of a row more at its end."""
    return self._replace(out_height=self.out_height + 1)

  def mirrored(self) -> 'Geometry':
    """With stride 1 a transposed convolution is a convolution by the flipped kernel, in this geometry."""
    sides = {'height': self.out_height, 'width': self.out_width, 'out_height': self.height, 'out_width': self.width}
    return self._replace(stride=1, pad=self.size - 1 - self.pad, **sides)


def convolve(geometry: Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """x [B, H, W, I], kernel [size, size, I, O] -> y [B, h, w, O]."""
  strides = (geometry.stride, geometry.stride)
  return lax.conv_general_dilated(
    x, kernel, strides, geometry.padding(), dimension_numbers=LAYOUT, precision=geometry.precision
  )


def transpose(geometry: Geometry, y: jax.Array, flipped: jax.Array) -> jax.Array:
  """y [B, h, w, O], the kernel with taps and channels turned round [size, size, O, I] -> x [B, H, W, I]."""
  return lax.conv_general_dilated(
    y,
    flipped,
    (1, 1),
    tuple((geometry.size - 1 - before, geometry.size - 1 - after) for before, after in geometry.padding()),
    lhs_dilation=(geometry.stride, geometry.stride),
    dimension_numbers=LAYOUT,
    precision=geometry.precision,
  )


def kernel_gradient(geometry: Geometry, x: jax.Array, y: jax.Array) -> jax.Array:
  """x [B, H, W, I], y [B, h, w, O] -> [size, size, I, O]."""
  kernel = jax.ShapeDtypeStruct((geometry.size, geometry.size, x.shape[-1], y.shape[-1]), x.dtype)
  return jax.linear_transpose(lambda kernel: convolve(geometry, x, kernel), kernel)(y)[0]
