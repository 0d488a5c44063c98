"""3x3 convolutions by stride 1 with fewer multiplications (Winograd 1980), for the CPU's matrix products.

Of a convolution along one axis, n results and three taps, the trilinear form (see `jaxface.conv`)

    sum over p < n, t < 3 of y[p] kernel[t] x[p + t] = sum over j < n + 2 of (RESULTS y)[j] (TAPS kernel)[j] (MET x)[j]

needs n + 2 multiplications instead of 3n: polynomials multiplied by way of their values at n + 2 points. Its gradients
with respect to y and to the kernel are the convolution and the kernel's gradient. With n = 4 there are twice as many of
float32's rounding errors as in a plain convolution, of which deep networks make much; with n = 2 no more. A kernel's
gradient bears four, along both axes.
"""

# B batch | H,W pixels | I channels of x | O channels of y

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxface.plain_conv import LAYOUT


class _Form(NamedTuple):
  """RESULTS [n+2, n], TAPS [n+2, 3] and MET [n+2, n+2] of the form above."""

  results: np.ndarray
  taps: np.ndarray
  met: np.ndarray

  @property
  def tile(self) -> int:
    """n."""
    return self.results.shape[1]

  def tiles(self, side: int) -> int:
    """How many tiles cover so many results."""
    return -(-side // self.tile)


def _form(points: Sequence[float]) -> _Form:
  """The form with these points and infinity, which are n + 2."""
  tile = len(points) - 1
  others = [[q for q in points if q != p] for p in points]
  scale = [np.prod([p - q for q in those]) for p, those in zip(points, others, strict=True)]
  results = [[p**n for n in range(tile)] for p in points]
  taps = [[p**n / s for n in range(3)] for p, s in zip(points, scale, strict=True)]
  # Coefficients of the polynomials that are 0 at the other points, the constant ones first.
  met = [[*np.poly(those)[::-1], 0] for those in others]
  infinity = [0] * (tile - 1) + [1], [0, 0, 1], np.poly(points)[::-1]
  return _Form(*(np.array([*rows, last]) for rows, last in zip((results, taps, met), infinity, strict=True)))


_BY_TWO = _form((0, 1, -1))
# With 2 in place of 1/2 rounding errors are a quarter larger.
_BY_FOUR = _form((0, 1, -1, 1 / 2, -2))
# What is worked on at once should stay in the last-level cache, and of the convolution in the second.
_CHUNK_BYTES = 2**24
_CONVOLVED_BYTES = 2**23


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Cross-correlation where the kernel fits: [B, H+2, W+2, I], kernel [3, 3, I, O] -> [B, H, W, O].

  Along rows by four multiplications for six; along columns XLA's own convolution is fast.
  """
  batch, height, width = x.shape[0], x.shape[1] - 2, x.shape[2] - 2
  kernels = jnp.einsum('jt,tuio->juio', _BY_TWO.taps.astype(np.float32), kernel)[:, None]

  def some(x: jax.Array) -> jax.Array:
    products = [
      lax.conv_general_dilated(piece, k, (1, 1), 'VALID', dimension_numbers=LAYOUT)
      for piece, k in zip(_pieces(_BY_TWO, x, 1, height, _BY_TWO.met), kernels, strict=True)
    ]
    rows = jnp.stack([_combine(weights, products) for weights in _BY_TWO.results.T], 2)
    return rows.reshape(len(x), -1, width, kernel.shape[-1])[:, :height]

  chunk = chunk_size(batch, 4 * _BY_TWO.tiles(height) * width * sum(kernel.shape[2:]), _CONVOLVED_BYTES)
  if chunk == batch:
    return some(x)
  return lax.map(some, x.reshape(-1, chunk, *x.shape[1:])).reshape(batch, height, width, -1)


def kernel_gradient(x: jax.Array, y: jax.Array) -> jax.Array:
  """Of `convolve` to y's gradient: x [B, H+2, W+2, I], y [B, H, W, O] -> [3, 3, I, O].

  By 36 multiplications for 144. The shifts of x and y that plain matrix products take are more to write, too.
  """
  form, batch, (height, width) = _BY_FOUR, len(y), y.shape[1:3]

  def some(x: jax.Array, y: jax.Array) -> jax.Array:
    sides = ((x, form.met), (y, form.results))
    by_row = ((jnp.stack(_pieces(form, t, 1, height, weights)), weights) for t, weights in sides)
    by_column = (_pieces(form, t, 3, width, weights) for t, weights in by_row)
    products = [
      lax.dot_general(*(t.reshape(6, -1, t.shape[-1]) for t in pair), (((1,), (1,)), ((0,), (0,))))
      for pair in zip(*by_column, strict=True)
    ]
    return jnp.stack(products, 1)

  numbers = 36 * form.tiles(height) * form.tiles(width) * (x.shape[-1] + y.shape[-1])
  chunk = chunk_size(batch, numbers, _CHUNK_BYTES)
  total = some(x[:chunk], y[:chunk])
  if chunk < batch:
    cut = lambda t, i: lax.dynamic_slice_in_dim(t, i * chunk, chunk)
    total = lax.fori_loop(1, batch // chunk, lambda i, total: total + some(cut(x, i), cut(y, i)), total)
  taps = form.taps.astype(np.float32)
  return jnp.einsum('jkio,jt,ku->tuio', total, taps, taps)


def chunk_size(batch: int, numbers: int, limit: int) -> int:
  """How many pictures to work on at once, of which each takes so many float32 numbers, within `limit` bytes."""
  return max(n for n in range(1, batch + 1) if batch % n == 0 and (n == 1 or 4 * n * numbers <= limit))


def _pieces(form: _Form, array: jax.Array, axis: int, side: int, weights: np.ndarray) -> list[jax.Array]:
  """`weights` times what each tile of `side` results along `axis` meets, zeros behind the end: an array a row."""
  met, tiles = weights.shape[1], form.tiles(side)
  missing = form.tile * (tiles - 1) + met - array.shape[axis]
  array = jnp.pad(array, [(0, max(missing, 0) if a == axis else 0) for a in range(array.ndim)])
  last = form.tile * (tiles - 1) + 1
  shifted = [lax.slice_in_dim(array, t, t + last, form.tile, axis) for t in range(met)]
  return [_combine(row, shifted) for row in weights]


def _combine(weights: np.ndarray, arrays: Sequence[jax.Array]) -> jax.Array:
  return sum(float(w) * array for w, array in zip(weights, arrays, strict=True) if w)
