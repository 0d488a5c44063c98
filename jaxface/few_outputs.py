"""Convolutions by stride 1 to a few channels, several pixels of a row at once: for a TPU's matrix units.

A matrix unit has 128 or 256 columns, one for each channel that it works out; to three channels it is all but idle. By a
kernel that holds the taps n times, each time one pixel further along, and windows n pixels apart, the channels of n
neighbouring pixels are worked out at once: (size + n - 1) / size times the products in an n-th of the passes.

Its rows are one for each channel that is summed over. Where these are few as well, n pixels of x are made one.
"""

# B batch | H,W pixels of x | h,w pixels of y | I channels of x | O channels of y | N pixels at once

import jax
import jax.numpy as jnp
from jax import lax

from jaxface.plain_conv import Geometry

# With more channels there is little to gain.
_FEW = 4
_AT_ONCE = 16


def pays(geometry: Geometry, outputs: int) -> bool:
  """Whether a convolution to so many channels gains by this."""
  return geometry.stride == 1 and geometry.size > 1 and outputs <= _FEW


def convolve(geometry: Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """x [B, H, W, I], kernel [size, size, I, O] -> y [B, h, w, O]."""
  last = _at_once(geometry) - 1
  wide = jnp.stack([jnp.pad(kernel, ((0, 0), (n, last - n), (0, 0), (0, 0))) for n in range(last + 1)], 3)
  y = _by_wide_windows(geometry, x, wide.reshape(*wide.shape[:3], -1))
  return y.reshape(*y.shape[:2], -1, kernel.shape[3])[:, :, : geometry.out_width]


def kernel_gradient(geometry: Geometry, x: jax.Array, y: jax.Array) -> jax.Array:
  """x [B, H, W, I], y [B, h, w, O] -> [size, size, I, O]."""
  size, at_once, outputs = geometry.size, _at_once(geometry), y.shape[3]
  y = jnp.pad(y, ((0, 0), (0, 0), (0, -geometry.out_width % at_once), (0, 0)))
  y = y.reshape(*y.shape[:2], -1, at_once * outputs)
  wide = jax.ShapeDtypeStruct((size, size + at_once - 1, x.shape[3], y.shape[3]), x.dtype)
  found = jax.linear_transpose(lambda wide: _by_wide_windows(geometry, x, wide), wide)(y)[0].astype(jnp.float32)
  found = found.reshape(*found.shape[:3], at_once, outputs)
  return sum(found[:, n : n + size, :, n] for n in range(at_once)).astype(x.dtype)


def _at_once(geometry: Geometry) -> int:
  return min(_AT_ONCE, geometry.out_width)


def _by_wide_windows(geometry: Geometry, x: jax.Array, wide: jax.Array) -> jax.Array:
  """By the wide kernel [size, size + N - 1, I, N O]: [B, h, ceil(w / N), N O]."""
  at_once = _at_once(geometry)
  options = {'dimension_numbers': ('NHWC', 'HWIO', 'NHWC'), 'precision': geometry.precision}
  rows, (before, after) = geometry.padding()
  # So that the last window has as many pixels, too.
  after += -geometry.out_width % at_once
  if x.shape[3] > _FEW:
    return lax.conv_general_dilated(x, wide, (1, at_once), (rows, (before, after)), **options)
  behind = -wide.shape[1] % at_once
  x = jnp.pad(x, ((0, 0), rows, (before, after + behind), (0, 0)))
  wide = jnp.pad(wide, ((0, 0), (0, behind), (0, 0), (0, 0)))
  x = x.reshape(*x.shape[:2], -1, at_once * x.shape[3])
  wide = wide.reshape(len(wide), -1, x.shape[3], wide.shape[3])
  return lax.conv_general_dilated(x, wide, (1, 1), 'VALID', **options)
