"""Convolutions of few channels by blocks of a row's pixels: for TPUs, whose units are 128 wide.

A TPU keeps 128 channels side by side, and its matrix units have a row for each channel that is summed over and a column
for each that is worked out. Where there are fewer, memory and units are filled by a block of neighbouring pixels as one
of more channels. The kernel then holds the taps once for each pixel of y's block, each time a stride further along, and
zeros between: more products, but fewer passes.
"""

# B batch | H,W pixels of x | h,w pixels of y | I channels of x | O channels of y
# M pixels in a block of x | N pixels in a block of y | L pixels of x that a block of y sees

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxface import plain_conv
from jaxface.meshes import TPU_LANES
from jaxface.plain_conv import Geometry

# So few outputs leave nearly all columns idle: then y's blocks are larger than x's.
_FEW_OUTPUTS, _MANY_PIXELS = 4, 16


def pay(geometry: Geometry, inputs: int, outputs: int) -> bool:
  """Whether a convolution from and to so many channels gains by them."""
  return geometry.size > 1 and max(_blocks(geometry, inputs, outputs)) > 1


def convolve(geometry: Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """x [B, H, W, I], kernel [size, size, I, O] -> y [B, h, w, O]."""
  return _by_blocks(geometry, x, _widen(geometry, kernel))


def transpose(geometry: Geometry, y: jax.Array, flipped: jax.Array) -> jax.Array:
  """y [B, h, w, O], the kernel with taps and channels turned round [size, size, O, I] -> x [B, H, W, I]."""
  wide = _widen(geometry, flipped[::-1, ::-1].swapaxes(2, 3))
  # Inside `shard_map` x differs between devices where y does.
  x = jax.eval_shape(functools.partial(plain_conv.transpose, geometry), y, flipped)
  return jax.linear_transpose(lambda x: _by_blocks(geometry, x, wide), x)(y)[0]


def kernel_gradient(geometry: Geometry, x: jax.Array, y: jax.Array) -> jax.Array:
  """x [B, H, W, I], y [B, h, w, O] -> [size, size, I, O]."""
  widen = functools.partial(_widen, geometry)
  kernel = jax.ShapeDtypeStruct((geometry.size, geometry.size, x.shape[3], y.shape[3]), jnp.float32)
  wide = jax.ShapeDtypeStruct(jax.eval_shape(widen, kernel).shape, x.dtype)
  found = jax.linear_transpose(lambda wide: _by_blocks(geometry, x, wide), wide)(y)[0]
  # What each pixel of a block has found is added in float32.
  return jax.linear_transpose(widen, kernel)(found.astype(jnp.float32))[0].astype(x.dtype)


def _blocks(geometry: Geometry, inputs: int, outputs: int) -> tuple[int, int]:
  """M and N, powers of two; M divides stride N."""
  filled = TPU_LANES if geometry.blocks else 1
  many = _MANY_PIXELS if outputs <= _FEW_OUTPUTS else filled // max(outputs, inputs // geometry.stride)
  n = _power_of_two(min(many, geometry.out_width))
  return math.gcd(geometry.stride * n, _power_of_two(filled // inputs)), n


def _power_of_two(limit: int) -> int:
  """The largest up to the limit, at least 1."""
  return 1 << max(limit, 1).bit_length() - 1


def _widen(geometry: Geometry, kernel: jax.Array) -> jax.Array:
  """[size, size, I, O] -> [size, L, I, N, O]: a copy for every pixel of y's block."""
  m, n = _blocks(geometry, *kernel.shape[2:])
  # Zeros in front, so that the first tap of all meets the beginning of a block of x.
  front = -geometry.padding()[1][0] % m
  room = geometry.stride * (n - 1)
  behind = -(front + geometry.size + room) % m
  places = [(front + geometry.stride * i, room - geometry.stride * i + behind) for i in range(n)]
  return jnp.stack([jnp.pad(kernel, ((0, 0), place, (0, 0), (0, 0))) for place in places], 3)


def _by_blocks(geometry: Geometry, x: jax.Array, wide: jax.Array) -> jax.Array:
  """x [B, H, W, I], kernel [size, L, I, N, O] -> y [B, h, w, O]."""
  size, length, inputs, n, outputs = wide.shape
  m, _ = _blocks(geometry, inputs, outputs)
  rows, (before, _) = geometry.padding()
  x = jnp.pad(x, ((0, 0), (0, 0), (0, -geometry.width % m), (0, 0)))
  x = x.reshape(*x.shape[:2], -1, m * inputs)
  stride, taps, blocks = geometry.stride * n // m, length // m, -(-geometry.out_width // n)
  before = -(-before // m)
  y = lax.conv_general_dilated(
    x,
    wide.reshape(size, taps, m * inputs, n * outputs),
    (geometry.stride, stride),
    (rows, (before, stride * (blocks - 1) + taps - before - x.shape[2])),
    dimension_numbers=plain_conv.LAYOUT,
    precision=geometry.precision,
  )
  return y.reshape(*y.shape[:2], blocks * n, outputs)[:, :, : geometry.out_width]
