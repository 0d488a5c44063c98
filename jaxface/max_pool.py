"""Max pooling by stride 2, with a gradient that is fast on every backend."""

# B batch | H,W pixels | h,w windows | C channels

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

Padding = tuple[tuple[int, int], tuple[int, int]]


def max_pool2x2(x: jax.Array) -> jax.Array:
  """Largest of every 2x2 square: [B, H, W, C] -> [B, H//2, W//2, C]; an odd last row or column is dropped.

  The gradient goes to the first largest pixel, row by row, as in XLA's and TensorFlow's max pooling.
  """
  return _max_pool(2, ((0, 0), (0, 0)), x)


def max_pool3x3(x: jax.Array, padding: Sequence[tuple[int, int]] = ((0, 0), (0, 0))) -> jax.Array:
  """Largest of 3x3 squares two apart: [B, H, W, C] -> [B, h, w, C], h = (H + padding - 3) // 2 + 1, and w likewise.

  `padding` is rows and columns before and after, which are never the largest. The gradient is as in `max_pool2x2`.
  """
  return _max_pool(3, tuple(map(tuple, padding)), x)


def hanging_over(x: jax.Array) -> Padding:
  """What Caffe's 3x3 pools and PyTorch's `ceil_mode` pad: an even side's last squares hang over the edge by a pixel."""
  return tuple((0, 1 - side % 2) for side in x.shape[1:3])


def _pool(size: int, padding: Padding, x: jax.Array) -> jax.Array:
  return lax.reduce_window(x, -jnp.inf, lax.max, (1, size, size, 1), (1, 2, 2, 1), ((0, 0), *padding, (0, 0)))


_max_pool = jax.custom_vjp(_pool, nondiff_argnums=(0, 1))


def _pool_and_save(size: int, padding: Padding, x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  y = _pool(size, padding, x)
  return y, (x, y)


def _unpool(size: int, padding: Padding, saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array]:
  by_window = functools.partial(_unpool_by_window, size, padding)
  by_comparison = functools.partial(_unpool_by_comparison, size, padding)
  return (lax.platform_dependent(*saved, gradient, tpu=by_window, default=by_comparison),)


_max_pool.defvjp(_pool_and_save, _unpool)


def _unpool_by_window(size: int, padding: Padding, x: jax.Array, y: jax.Array, gradient: jax.Array) -> jax.Array:
  del y
  return jax.vjp(functools.partial(_pool, size, padding), x)[1](gradient)[0]


def _unpool_by_comparison(size: int, padding: Padding, x: jax.Array, y: jax.Array, gradient: jax.Array) -> jax.Array:
  """XLA on CPU and GPU would carry an index for every axis along with every pixel, in float32, and scatter."""
  outputs, sides = y.shape[1:3], x.shape[1:3]
  reached = [
    (before, max(2 * (out - 1) + size - before - side, 0))
    for out, side, (before, _) in zip(outputs, sides, padding, strict=True)
  ]
  padded = jnp.pad(x, ((0, 0), *reached, (0, 0)), constant_values=-jnp.inf)
  # From the last pixel of a window to the first, so that the first equal one stays.
  which = jnp.full(y.shape, size * size, jnp.int8)
  for row, column in reversed(list(itertools.product(range(size), repeat=2))):
    met = padded[:, row : row + 2 * outputs[0] - 1 : 2, column : column + 2 * outputs[1] - 1 : 2]
    which = jnp.where(met == y, jnp.int8(size * row + column), which)

  # Pairs of rows and columns begin where windows do; with size 3 the last window reaches into one more.
  pairs = [out + (size == 3) for out in outputs]
  squares = [[_won(size, which, gradient, pairs, odd=(i, j)) for j in (0, 1)] for i in (0, 1)]
  unpooled = jnp.stack([jnp.stack(row, 3) for row in squares], 2)
  unpooled = unpooled.reshape(x.shape[0], 2 * pairs[0], 2 * pairs[1], x.shape[-1])
  # What windows never reach gets nothing, what is padding is dropped.
  crop = [(-before, side + before - 2 * pair, 0) for side, pair, (before, _) in zip(sides, pairs, padding, strict=True)]
  return lax.pad(unpooled, jnp.zeros((), unpooled.dtype), ((0, 0, 0), *crop, (0, 0, 0)))


def _won(size: int, which: jax.Array, gradient: jax.Array, pairs: Sequence[int], odd: tuple[int, int]) -> jax.Array:
  """What the first or second pixels of all pairs get, along both axes: [B, *pairs, C]."""
  # An odd pixel is the second tap of a window; an even one the first, and the third of the window before.
  taps = [[(1, 0)] if second else [(0, 0), (2, 1)][: size - 1] for second in odd]
  total = jnp.zeros((), gradient.dtype)
  for (row, down), (column, right) in itertools.product(*taps):
    won = jnp.where(which == jnp.int8(size * row + column), gradient, 0)
    places = [
      (shift, pair - side - shift) for shift, pair, side in zip((down, right), pairs, won.shape[1:3], strict=True)
    ]
    total = total + jnp.pad(won, ((0, 0), *places, (0, 0)))
  return total
