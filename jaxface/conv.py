"""3x3 convolutions and their stride-2 transposes, with gradients that are fast on a CPU too.

Also `conv_valid`, a convolution without padding of any size and stride.

A convolution, its transpose and its kernel gradient are the three gradients of one trilinear form

    form(x, kernel, y) = sum over b, i, o, p, t of  y[b, p, o] kernel[t, i, o] x[b, stride * p + t - pad, i]

(p runs over y's pixels, t over the kernel's taps, x is 0 outside), with respect to y, to x and to the kernel. Each of
the three is therefore differentiated by the other two, to any order (in reverse mode).

XLA runs the first two well nearly everywhere. On CPU it writes a kernel gradient as a convolution with a picture-sized
window, 3 to 20 times slower than the matrix products below, which only a program lowered for CPU contains; so it is
with convolutions of pictures of 2x2 pixels, whose roles it swaps, and with transposes by stride 2 of few outputs, which
it convolves with the zeros between. Convolutions of many channels and pixels it runs at the speed of the hardware
there; `jaxface.winograd` makes them fewer multiplications.
"""

# B batch | H,W pixels of x | h,w pixels of y | I channels of x | O channels of y

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxface import winograd

# What one matrix product of the CPU's kernel gradient works on should stay in the last-level cache.
_CHUNK_BYTES = 2**24
# Pictures up to this size are convolved by a matrix product on CPU.
_TINY = 2
# Where `winograd` pays on CPU: for its matrix products the channels, for its tiles of four the pixels must be many.
_MANY_PIXELS = 16
_MANY_CHANNELS = {'convolve': 64, 'kernel_gradient': 32}
# Of fewer pixels in all it takes longer to transform the kernel, or its gradient, than is saved.
_WORTH_A_KERNEL = 512
# Up to so many outputs XLA on CPU is slow at transposed convolutions by stride 2.
_FEW_OUTPUTS = 32

_LAYOUT = ('NHWC', 'HWIO', 'NHWC')


class _Geometry(NamedTuple):
  """Where y's pixels lie on x's: `stride` apart, the first window beginning `pad` before x's first pixel."""

  stride: int
  pad: int
  height: int
  width: int
  out_height: int
  out_width: int
  size: int = 3

  def padding(self) -> tuple[tuple[int, int], tuple[int, int]]:
    """Zeros before and after x's rows and columns that make it yield exactly y's."""
    sides = ((self.height, self.out_height), (self.width, self.out_width))
    return tuple((self.pad, self.stride * (out - 1) + self.size - side - self.pad) for side, out in sides)

  def padded(self) -> bool:
    """Whether y's pixels see any zeros around x."""
    return any(any(before_and_after) for before_and_after in self.padding())

  def with_spare_row(self) -> '_Geometry':
    """For y of a row more at its end."""
    return self._replace(out_height=self.out_height + 1)

  def mirrored(self) -> '_Geometry':
    """With stride 1 a transposed convolution is a convolution by the flipped kernel, in this geometry."""
    pad = self.size - 1 - self.pad
    return _Geometry(1, pad, self.out_height, self.out_width, self.height, self.width, self.size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(geometry: _Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """d form / d y, [B, h, w, O]."""
  by_window = functools.partial(_convolve_by_window, geometry)
  if max(geometry.height, geometry.width) <= _TINY and geometry.size == 3:
    on_cpu = functools.partial(_convolve_by_product, geometry)
  elif _by_tiles(geometry, x, kernel.shape[2:], 'convolve'):
    on_cpu = lambda x, kernel: winograd.convolve(_pad_x(x, geometry), kernel)
  elif not geometry.padded():
    on_cpu = functools.partial(_convolve_with_spare_row, geometry)
  else:
    return by_window(x, kernel)
  return lax.platform_dependent(x, kernel, cpu=on_cpu, default=by_window)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _transpose(geometry: _Geometry, y: jax.Array, kernel: jax.Array) -> jax.Array:
  """d form / d x, [B, H, W, I]."""
  flipped = kernel[::-1, ::-1].swapaxes(2, 3)
  if geometry.stride == 1:
    return _convolve(geometry.mirrored(), y, flipped)
  by_window = functools.partial(_transpose_by_window, geometry)
  few = kernel.shape[2] <= _FEW_OUTPUTS or max(geometry.out_height, geometry.out_width) <= _TINY
  if not (few and geometry.stride == 2 and geometry.size == 3 and geometry.pad == 0):
    return by_window(y, flipped)
  return lax.platform_dependent(y, flipped, cpu=functools.partial(_transpose_by_phases, geometry), default=by_window)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _kernel_gradient(geometry: _Geometry, x: jax.Array, y: jax.Array) -> jax.Array:
  """d form / d kernel, [size, size, I, O]."""
  by_window = functools.partial(_kernel_gradient_by_window, geometry)
  if _by_tiles(geometry, x, (x.shape[-1], y.shape[-1]), 'kernel_gradient'):
    on_cpu = lambda x, y: winograd.kernel_gradient(_pad_x(x, geometry), y)
  elif geometry.size == 3:
    on_cpu = functools.partial(_kernel_gradient_by_products, geometry)
  elif not geometry.padded():
    on_cpu = functools.partial(_kernel_gradient_with_spare_row, geometry)
  else:
    return by_window(x, y)
  return lax.platform_dependent(x, y, cpu=on_cpu, default=by_window)


_convolve.defvjp(
  lambda geometry, x, kernel: (_convolve(geometry, x, kernel), (x, kernel)),
  lambda geometry, saved, y: (_transpose(geometry, y, saved[1]), _kernel_gradient(geometry, saved[0], y)),
)
_transpose.defvjp(
  lambda geometry, y, kernel: (_transpose(geometry, y, kernel), (y, kernel)),
  lambda geometry, saved, x: (_convolve(geometry, x, saved[1]), _kernel_gradient(geometry, x, saved[0])),
)
_kernel_gradient.defvjp(
  lambda geometry, x, y: (_kernel_gradient(geometry, x, y), (x, y)),
  lambda geometry, saved, kernel: (_transpose(geometry, saved[1], kernel), _convolve(geometry, saved[0], kernel)),
)


def _convolve_by_window(geometry: _Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
  strides = (geometry.stride, geometry.stride)
  return lax.conv_general_dilated(x, kernel, strides, geometry.padding(), dimension_numbers=_LAYOUT)


def _convolve_with_spare_row(geometry: _Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """XLA on CPU convolves 2 to 12 times as fast where there is any padding, and so with kernel gradients."""
  return _convolve_by_window(geometry.with_spare_row(), x, kernel)[:, :-1]


def _convolve_by_product(geometry: _Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
  columns = _shifts_of_x(_shifts_of_x(x, 2, geometry), 1, geometry)
  return lax.dot_general(columns, kernel.reshape(-1, kernel.shape[-1]), (((3,), (0,)), ((), ())))


def _transpose_by_window(geometry: _Geometry, y: jax.Array, flipped: jax.Array) -> jax.Array:
  return lax.conv_general_dilated(
    y,
    flipped,
    (1, 1),
    tuple((geometry.size - 1 - before, geometry.size - 1 - after) for before, after in geometry.padding()),
    lhs_dilation=(geometry.stride, geometry.stride),
    dimension_numbers=_LAYOUT,
  )


def _transpose_by_phases(geometry: _Geometry, y: jax.Array, flipped: jax.Array) -> jax.Array:
  """Even pixels see the outer taps, odd ones the middle one, along each axis: four convolutions by stride 1."""
  sides = (geometry.height, geometry.width)
  # The last even pixel of an odd side sees y's last from behind.
  outputs = (geometry.out_height, geometry.out_width)
  behind = tuple(-(-side // 2) - out for side, out in zip(sides, outputs, strict=True))
  taps = (slice(0, None, 2), slice(1, 2))

  def phase(row: int, column: int) -> jax.Array:
    padding = [(1 - odd, after) for odd, after in zip((row, column), behind, strict=True)]
    return lax.conv_general_dilated(y, flipped[taps[row], taps[column]], (1, 1), padding, dimension_numbers=_LAYOUT)

  phases = jnp.stack([jnp.stack([phase(row, column) for column in (0, 1)], 3) for row in (0, 1)], 2)
  batch, rows, _, columns, _, channels = phases.shape
  return phases.reshape(batch, 2 * rows, 2 * columns, channels)[:, : sides[0], : sides[1]]


def _kernel_gradient_by_window(geometry: _Geometry, x: jax.Array, y: jax.Array) -> jax.Array:
  kernel = jax.ShapeDtypeStruct((geometry.size, geometry.size, x.shape[-1], y.shape[-1]), x.dtype)
  return jax.linear_transpose(lambda kernel: _convolve_by_window(geometry, x, kernel), kernel)(y)[0]


def _kernel_gradient_with_spare_row(geometry: _Geometry, x: jax.Array, y: jax.Array) -> jax.Array:
  return _kernel_gradient_by_window(geometry.with_spare_row(), x, _pad(y, 1, (0, 1)))


def _kernel_gradient_by_products(geometry: _Geometry, x: jax.Array, y: jax.Array) -> jax.Array:
  """Sums over pixels as matrix products. Along each axis either x is shifted by the tap, or y the other way round."""
  batch, inputs, outputs = x.shape[0], x.shape[-1], y.shape[-1]

  def width(taps):
    """Channels to be written when x has `taps` shifts along each axis and y the others."""
    rows, columns = taps
    return rows * columns * inputs + 9 // (rows * columns) * outputs

  # Steps of two pixels cannot be undone on y's side.
  taps_of_x = min([(3, 3), (1, 3), (1, 1)], key=width) if geometry.stride == 1 else (3, 3)
  taps_of_y = tuple(3 // taps for taps in taps_of_x)

  def product(x, y):
    for axis in (2, 1):
      if taps_of_x[axis - 1] == 3:
        x = _shifts_of_x(x, axis, geometry)
      else:
        y = _shifts_of_y(y, axis, geometry)
    x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    return lax.dot_general(x, y, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)

  numbers = geometry.out_height * geometry.out_width * width(taps_of_x)
  chunk = winograd.chunk_size(batch, numbers, _CHUNK_BYTES)
  if chunk == batch:
    total = product(x, y)
  else:
    starts = jnp.arange(0, batch, chunk)
    total = lax.map(lambda start: product(*(lax.dynamic_slice_in_dim(t, start, chunk) for t in (x, y))), starts).sum(0)
  total = total.reshape(*taps_of_x, inputs, *taps_of_y, outputs).transpose(0, 3, 1, 4, 2, 5)
  return total.reshape(3, 3, inputs, outputs).astype(x.dtype)


def _by_tiles(geometry: _Geometry, x: jax.Array, channels: tuple[int, ...], kind: str) -> bool:
  few = min(geometry.out_height, geometry.out_width) < _MANY_PIXELS or min(channels) < _MANY_CHANNELS[kind]
  few |= len(x) * geometry.out_height * geometry.out_width < _WORTH_A_KERNEL
  return not few and geometry.stride == 1 and geometry.size == 3 and x.dtype == jnp.float32


def _pad_x(x: jax.Array, geometry: _Geometry) -> jax.Array:
  return jnp.pad(x, ((0, 0), *geometry.padding(), (0, 0)))


def _shifts_of_x(x: jax.Array, axis: int, geometry: _Geometry) -> jax.Array:
  """Channels (3, C): for every pixel of y along `axis`, what the three taps meet."""
  length = (geometry.out_height, geometry.out_width)[axis - 1]
  x = _pad(x, axis, geometry.padding()[axis - 1])
  last = geometry.stride * (length - 1) + 1
  return jnp.concatenate([lax.slice_in_dim(x, t, t + last, geometry.stride, axis) for t in range(3)], -1)


def _shifts_of_y(y: jax.Array, axis: int, geometry: _Geometry) -> jax.Array:
  """Channels (3, C): for every pixel of x along `axis`, whom it reaches through the three taps, with stride 1."""
  length = (geometry.height, geometry.width)[axis - 1]
  y = _pad(y, axis, (2 - geometry.pad, length - y.shape[axis] + geometry.pad))
  return jnp.concatenate([lax.slice_in_dim(y, 2 - t, 2 - t + length, 1, axis) for t in range(3)], -1)


def _pad(array: jax.Array, axis: int, amount: tuple[int, int]) -> jax.Array:
  return jnp.pad(array, [amount if a == axis else (0, 0) for a in range(array.ndim)])


def conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Cross-correlation with zero padding: [B, H, W, I], kernel [3, 3, I, O] -> [B, H, W, O]."""
  height, width = x.shape[1:3]
  return _convolve(_Geometry(1, 1, height, width, height, width), x, kernel)


def conv_valid(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
  """Cross-correlation where the kernel fits: [B, H, W, I], kernel [k, k, I, O] -> [B, h, w, O].

  h = (H - k) // stride + 1, and w likewise. For k = 3 and stride 1 the kernel's gradient is that of `conv3x3`.
  """
  size = kernel.shape[0]
  outputs = tuple((side - size) // stride + 1 for side in x.shape[1:3])
  # Without the last rows and columns that no window reaches.
  height, width = (stride * (out - 1) + size for out in outputs)
  x = x[:, :height, :width]
  return _convolve(_Geometry(stride, 0, height, width, *outputs, size), x, kernel)


def conv_transpose3x3(x: jax.Array, kernel: jax.Array, *, odd: bool) -> jax.Array:
  """Transposed convolution by stride 2, as Keras defines it: out[2i + k] += x[i] kernel[k] for k = 0, 1, 2.

  [B, H, W, I], kernel [3, 3, O, I] -> [B, 2H, 2W, O], cut at the end (Keras 'same'), or with `odd` all of
  [B, 2H+1, 2W+1, O] (Keras 'valid').
  """
  height, width = x.shape[1:3]
  return _transpose(_Geometry(2, 0, 2 * height + odd, 2 * width + odd, height, width), x, kernel)
