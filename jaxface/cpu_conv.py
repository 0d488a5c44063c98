"""Convolutions and their gradients in the forms that XLA's CPU backend runs fast; see `jaxface.conv`."""

# B batch | H,W pixels of x | h,w pixels of y | I channels of x | O channels of y

import jax
import jax.numpy as jnp
from jax import lax

from jaxface import plain_conv, winograd
from jaxface.plain_conv import Geometry

# What one matrix product works on should stay in the last-level cache.
_CHUNK_BYTES = 2**24


def convolve_with_spare_row(geometry: Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """XLA on CPU convolves 2 to 12 times as fast where there is any padding, and so with kernel gradients."""
  return plain_conv.convolve(geometry.with_spare_row(), x, kernel)[:, :-1]


def kernel_gradient_with_spare_row(geometry: Geometry, x: jax.Array, y: jax.Array) -> jax.Array:
  """See `convolve_with_spare_row`."""
  return plain_conv.kernel_gradient(geometry.with_spare_row(), x, _pad(y, 1, (0, 1)))


def convolve_by_product(geometry: Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """All that windows meet, written side by side, times the kernel."""
  columns = _shifts_of_x(_shifts_of_x(x, 2, geometry), 1, geometry)
  return lax.dot_general(columns, kernel.reshape(-1, kernel.shape[-1]), (((3,), (0,)), ((), ())))


def transpose_by_phases(geometry: Geometry, y: jax.Array, flipped: jax.Array) -> jax.Array:
  """Even pixels see the outer taps, odd ones the middle one, along each axis: four convolutions by stride 1.

  Of 3x3 by stride 2 with pad 0.
  """
  sides = (geometry.height, geometry.width)
  # The last even pixel of an odd side sees y's last from behind.
  outputs = (geometry.out_height, geometry.out_width)
  behind = tuple(-(-side // 2) - out for side, out in zip(sides, outputs, strict=True))
  taps = (slice(0, None, 2), slice(1, 2))

  def phase(row: int, column: int) -> jax.Array:
    padding = [(1 - odd, after) for odd, after in zip((row, column), behind, strict=True)]
    kernel = flipped[taps[row], taps[column]]
    return lax.conv_general_dilated(y, kernel, (1, 1), padding, dimension_numbers=plain_conv.LAYOUT)

  phases = jnp.stack([jnp.stack([phase(row, column) for column in (0, 1)], 3) for row in (0, 1)], 2)
  batch, rows, _, columns, _, channels = phases.shape
  return phases.reshape(batch, 2 * rows, 2 * columns, channels)[:, : sides[0], : sides[1]]


def kernel_gradient_by_products(geometry: Geometry, x: jax.Array, y: jax.Array) -> jax.Array:
  """Sums over pixels as matrix products. Along each axis either x is shifted by the tap, or y the other way round."""
  batch, size, inputs, outputs = x.shape[0], geometry.size, x.shape[-1], y.shape[-1]

  def width(taps):
    """Channels to be written when x has `taps` shifts along each axis and y the others."""
    rows, columns = taps
    return rows * columns * inputs + size * size // (rows * columns) * outputs

  # Steps of two pixels cannot be undone on y's side.
  taps_of_x = min([(size, size), (1, size), (1, 1)], key=width) if geometry.stride == 1 else (size, size)
  taps_of_y = tuple(size // taps for taps in taps_of_x)

  def product(x, y):
    for axis in (2, 1):
      if taps_of_x[axis - 1] == size:
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
  return total.reshape(size, size, inputs, outputs).astype(x.dtype)


def pad_x(x: jax.Array, geometry: Geometry) -> jax.Array:
  """x with the zeros that windows see."""
  return jnp.pad(x, ((0, 0), *geometry.padding(), (0, 0)))


def _shifts_of_x(x: jax.Array, axis: int, geometry: Geometry) -> jax.Array:
  """Channels (size, C): for every pixel of y along `axis`, what the taps meet."""
  length = (geometry.out_height, geometry.out_width)[axis - 1]
  x = _pad(x, axis, geometry.padding()[axis - 1])
  last = geometry.stride * (length - 1) + 1
  shifts = [lax.slice_in_dim(x, t, t + last, geometry.stride, axis) for t in range(geometry.size)]
  return jnp.concatenate(shifts, -1)


def _shifts_of_y(y: jax.Array, axis: int, geometry: Geometry) -> jax.Array:
  """Channels (size, C): for every pixel of x along `axis`, whom it reaches through the taps, with stride 1."""
  length, last = (geometry.height, geometry.width)[axis - 1], geometry.size - 1
  y = _pad(y, axis, (last - geometry.pad, length - y.shape[axis] + geometry.pad))
  return jnp.concatenate([lax.slice_in_dim(y, last - t, last - t + length, 1, axis) for t in range(last + 1)], -1)


def _pad(array: jax.Array, axis: int, amount: tuple[int, int]) -> jax.Array:
  return jnp.pad(array, [amount if a == axis else (0, 0) for a in range(array.ndim)])
