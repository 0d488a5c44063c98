"""3x3 convolutions by stride 1 with fewer multiplications (Winograd 1980), for the CPU's matrix products.

Of a convolution along one axis, four results and three taps, the trilinear form (see `jaxface.conv`)

    sum over p < 4, t < 3 of  y[p] kernel[t] x[p + t]  =  sum over j < 6 of  (RESULTS y)[j] (TAPS kernel)[j] (MET x)[j]

needs six multiplications instead of twelve: polynomials multiplied by way of their values at six points. Its gradients
with respect to y and to the kernel are the convolution and the kernel's gradient. Rounding errors are twice those of
plain convolutions along one axis, several times those along both.
"""

# B batch | H,W pixels | I channels of x | O channels of y

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_TILE = 4
# Beside infinity. With 2 in place of 1/2 rounding errors are a quarter larger.
_POINTS = (0, 1, -1, 1 / 2, -2)


def _matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """RESULTS [6, 4], TAPS [6, 3] and MET [6, 6] of the form above."""
  others = [[q for q in _POINTS if q != p] for p in _POINTS]
  scale = [np.prod([p - q for q in those]) for p, those in zip(_POINTS, others, strict=True)]
  results = [[p**n for n in range(_TILE)] for p in _POINTS]
  taps = [[p**n / s for n in range(3)] for p, s in zip(_POINTS, scale, strict=True)]
  # Coefficients of the polynomials that are 0 at the other points, the constant ones first.
  met = [[*np.poly(those)[::-1], 0] for those in others]
  infinity = [0] * (_TILE - 1) + [1], [0, 0, 1], np.poly(_POINTS)[::-1]
  return tuple(np.array([*rows, last]) for rows, last in zip((results, taps, met), infinity, strict=True))


_RESULTS, _TAPS, _MET = _matrices()
# What is worked on at once should stay in the last-level cache, and of the convolution in the second.
_CHUNK_BYTES = 2**24
_CONVOLVED_BYTES = 2**23


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Cross-correlation where the kernel fits: [B, H+2, W+2, I], kernel [3, 3, I, O] -> [B, H, W, O].

  Along rows by six multiplications for four; along columns XLA's own convolution is fast, and more exact.
  """
  batch, height, width = x.shape[0], x.shape[1] - 2, x.shape[2] - 2
  kernels = jnp.einsum('jt,tuio->juio', _TAPS.astype(np.float32), kernel)[:, None]

  def some(x: jax.Array) -> jax.Array:
    products = [
      lax.conv_general_dilated(piece, k, (1, 1), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
      for piece, k in zip(_pieces(x, 1, _tiles(height), _MET), kernels, strict=True)
    ]
    rows = jnp.stack([_combine(weights, products) for weights in _RESULTS.T], 2)
    return rows.reshape(len(x), -1, width, kernel.shape[-1])[:, :height]

  chunk = _chunk(batch, 6 * _tiles(height) * width * sum(kernel.shape[2:]), _CONVOLVED_BYTES)
  if chunk == batch:
    return some(x)
  return lax.map(some, x.reshape(-1, chunk, *x.shape[1:])).reshape(batch, height, width, -1)


def kernel_gradient(x: jax.Array, y: jax.Array) -> jax.Array:
  """Of `convolve` to y's gradient: x [B, H+2, W+2, I], y [B, H, W, O] -> [3, 3, I, O].

  By 36 multiplications for 144. The shifts of x and y that plain matrix products take are more to write, too.
  """
  batch, rows, columns = len(y), *map(_tiles, y.shape[1:3])

  def some(x: jax.Array, y: jax.Array) -> jax.Array:
    by_row = (jnp.stack(_pieces(t, 1, rows, weights)) for t, weights in ((x, _MET), (y, _RESULTS)))
    by_column = (_pieces(t, 3, columns, weights) for t, weights in zip(by_row, (_MET, _RESULTS), strict=True))
    products = [
      lax.dot_general(*(t.reshape(6, -1, t.shape[-1]) for t in pair), (((1,), (1,)), ((0,), (0,))))
      for pair in zip(*by_column, strict=True)
    ]
    return jnp.stack(products, 1)

  chunk = _chunk(batch, 36 * rows * columns * (x.shape[-1] + y.shape[-1]), _CHUNK_BYTES)
  total = some(x[:chunk], y[:chunk])
  if chunk < batch:
    cut = lambda t, i: lax.dynamic_slice_in_dim(t, i * chunk, chunk)
    total = lax.fori_loop(1, batch // chunk, lambda i, total: total + some(cut(x, i), cut(y, i)), total)
  taps = _TAPS.astype(np.float32)
  return jnp.einsum('jkio,jt,ku->tuio', total, taps, taps)


def _tiles(side: int) -> int:
  return -(-side // _TILE)


def _chunk(batch: int, numbers: int, limit: int) -> int:
  """How many pictures to work on at once, of which each takes so many float32 numbers."""
  return max(n for n in range(1, batch + 1) if batch % n == 0 and (n == 1 or 4 * n * numbers <= limit))


def _pieces(array: jax.Array, axis: int, tiles: int, weights: np.ndarray) -> list[jax.Array]:
  """`weights` times what each tile of four along `axis` meets, zeros behind the end: six arrays of `tiles` there."""
  met = weights.shape[1]
  missing = _TILE * (tiles - 1) + met - array.shape[axis]
  array = jnp.pad(array, [(0, max(missing, 0) if a == axis else 0) for a in range(array.ndim)])
  last = _TILE * (tiles - 1) + 1
  shifted = [lax.slice_in_dim(array, t, t + last, _TILE, axis) for t in range(met)]
  return [_combine(row, shifted) for row in weights]


def _combine(weights: np.ndarray, arrays: Sequence[jax.Array]) -> jax.Array:
  return sum(float(w) * array for w, array in zip(weights, arrays, strict=True) if w)
