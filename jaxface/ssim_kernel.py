"""Mean SSIM of many planes and its slope, as one Pallas kernel for TPU that reads each plane once and keeps it on chip.

As XLA's products and fusions, SSIM and its gradient write the blurred products of two pictures, and what comes of them,
to memory and read them again. One plane and all of that fit into a TPU core's own memory: memory here sees the two
planes, and the slope.
"""

# K planes | H,W pixels | H',W' window positions

import functools
from typing import NamedTuple

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxface.filters import band
from jaxface.meshes import on_own_rows

# Each plane gives one number, stored as a row of 128: the smallest block that a TPU writes.
_LANES = 128
# Of the core's memory: some 30 arrays of a plane's size are alive at once; a plane of 512 pixels is 1 MiB.
_VMEM_BYTES = 64 * 2**20


class Similarity(NamedTuple):
  """What SSIM leaves open: the window's taps, which sum to 1, and both constants; see `jaxface.ssim.ssim`.

  `interpret` runs the kernel step by step on any device, to test it.
  """

  window: tuple[float, ...]
  k1: float = 0.01
  k2: float = 0.03
  interpret: bool = False


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def mean_ssim(similarity: Similarity, a_KHW: jax.Array, b_KHW: jax.Array) -> jax.Array:
  """Mean SSIM over all window positions of every pair of planes: float32 [K, H, W] in [0, 1] -> [K]."""
  return _measured(similarity, a_KHW, b_KHW, with_slope=False)[0]


def _forward(similarity, a, b):
  value, slopes = None, []
  # SSIM is symmetric: the slope of the first is that of the second with their places exchanged.
  for one, other in ((b, a), (a, b)):
    if one.perturbed:
      value, slope = _measured(similarity, one.value, other.value, with_slope=True)
    slopes.append(slope if one.perturbed else None)
  return value, (slopes[::-1], a.value.shape)


def _backward(similarity, saved, gradient_K):
  del similarity
  slopes, shape = saved
  zero = jnp.zeros(shape, jnp.float32)
  return tuple(zero if slope is None else slope * gradient_K[:, None, None] for slope in slopes)


mean_ssim.defvjp(_forward, _backward, symbolic_zeros=True)

# Variances are differences of two blurred values: less than full float32 would leave only noise of them.
_product = functools.partial(jnp.dot, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


@jax.custom_vjp
def _blur(matrices: tuple[jax.Array, ...], x_1HW: jax.Array) -> jax.Array:
  """[1, H, W] -> [1, H', W']; `matrices` are the left one, the right one, and both transposed, for the way back."""
  left, right, _, _ = matrices
  return _product(_product(left, x_1HW[0]), right)[None]


def _blur_back(matrices: tuple[jax.Array, ...], y_1HW: jax.Array) -> tuple[None, jax.Array]:
  _, _, left, right = matrices
  return None, _product(_product(left, y_1HW[0]), right)[None]


_blur.defvjp(lambda matrices, x: (_blur(matrices, x), matrices), _blur_back)


def _kernel(rows, columns, rows_T, columns_T, a, b, value, *slope, k1, k2):
  """One plane: its mean SSIM, and where there is a place for it the slope with respect to a."""
  matrices = tuple(matrix[...] for matrix in (rows, columns, rows_T, columns_T))
  blur = functools.partial(_blur, matrices)

  def mean(a_1HW):
    map_1HW = dm_pix.ssim(a_1HW, b[...], k1=k1, k2=k2, filter_fn=blur, return_map=True)
    return map_1HW.sum((1, 2), keepdims=True) / map_1HW.size

  if slope:
    mean_111, pull_back = jax.vjp(mean, a[...])
    (slope[0][...],) = pull_back(jnp.ones((1, 1, 1), jnp.float32))
  else:
    mean_111 = mean(a[...])
  value[...] = jnp.broadcast_to(mean_111, value.shape)


def _matrices(similarity: Similarity, planes: jax.Array) -> tuple[jax.Array, jax.Array]:
  """What blurs a plane from the left, [H', H], and from the right, [W, W']."""
  window = np.asarray(similarity.window, np.float32)
  return jnp.asarray(band(planes.shape[1], window)), jnp.asarray(band(planes.shape[2], window).T)


def _run(
  similarity: Similarity, a: jax.Array, b: jax.Array, rows: jax.Array, columns: jax.Array, *, with_slope: bool
) -> tuple[jax.Array, ...]:
  count, height, width = a.shape
  matrices = (rows, columns, rows.T, columns.T)
  whole = [pl.BlockSpec(matrix.shape, lambda k: (0, 0)) for matrix in matrices]
  plane = pl.BlockSpec((1, height, width), lambda k: (k, 0, 0))
  number = pl.BlockSpec((1, 1, _LANES), lambda k: (k, 0, 0))
  shapes = [jax.ShapeDtypeStruct((count, 1, _LANES), jnp.float32), jax.ShapeDtypeStruct(a.shape, jnp.float32)]
  # Five maps are blurred, and on the way back three.
  blurs = 5 + 3 * with_slope
  value, *slope = pl.pallas_call(
    functools.partial(_kernel, k1=similarity.k1, k2=similarity.k2),
    grid=(count,),
    in_specs=[*whole, plane, plane],
    out_specs=[number, plane][: 1 + with_slope],
    out_shape=shapes[: 1 + with_slope],
    compiler_params=pltpu.CompilerParams(dimension_semantics=('parallel',), vmem_limit_bytes=_VMEM_BYTES),
    cost_estimate=pl.CostEstimate(
      flops=2 * count * blurs * (rows.size * width + columns.size * len(rows)),
      transcendentals=count * len(rows) * columns.shape[1],
      bytes_accessed=4 * a.size * (2 + with_slope),
    ),
    interpret=similarity.interpret,
  )(*matrices, a, b)
  return (value[:, 0, 0], *slope)


def _measured(similarity: Similarity, a: jax.Array, b: jax.Array, *, with_slope: bool) -> tuple[jax.Array, ...]:
  """Every plane's mean SSIM and, with `with_slope`, its slope with respect to a. XLA cuts no kernels: devices do."""
  run = functools.partial(_run, similarity, with_slope=with_slope)
  # What a kernel writes is not known to differ between devices.
  return on_own_rows(run, (a, b), _matrices(similarity, a), check_vma=False)
