"""KID (Binkowski et al. 2018): squared maximum mean discrepancy between two sets' Inception features; lower is better.

Unlike FID it is unbiased: the expectation does not depend on how many pictures there are, only the spread does. It may
come out a little below 0 for sets alike.
"""

# N,M pictures | D features | S subsets | K pictures of a subset

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxface.errors import UserError

# Of how many random subsets the mean is taken, and how many pictures each has at most.
SUBSETS = 100
SUBSET_SIZE = 1000


class Kid(NamedTuple):
  """Mean and standard deviation over the subsets, and the pictures in each."""

  mean: float
  std: float
  subset_size: int


def kid(a: np.ndarray, b: np.ndarray, *, subsets: int = SUBSETS, subset_size: int = SUBSET_SIZE, seed: int = 0) -> Kid:
  """KID of features [N, D] and [M, D], with the kernel (x . y / D + 1)^3, over random subsets of both.

  Subsets are drawn without replacement, the same for the same `seed`; they are smaller than `subset_size` where a set
  is. Many report it times 1000. UserError for sets of fewer than two.
  """
  if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
    raise UserError(f'features of shapes {a.shape} and {b.shape} cannot be compared; give [N, D] and [M, D]')
  size = min(subset_size, len(a), len(b))
  if size < 2 or subsets < 1:
    raise UserError(f'KID of {len(a)} and {len(b)} pictures in {subsets} subsets: two pictures and one subset at least')
  draw = np.random.default_rng(seed).choice
  rows_SK, columns_SK = (
    np.stack([draw(len(features), size, replace=False) for _ in range(subsets)]).astype(np.int32) for features in (a, b)
  )
  values = np.asarray(_discrepancies(a.astype(np.float32), b.astype(np.float32), rows_SK, columns_SK), np.float64)
  return Kid(float(values.mean()), float(values.std()), size)


@jax.jit
def _discrepancies(a_ND, b_MD, rows_SK, columns_SK):
  """Unbiased estimate for each subset, float32 [S]."""
  return jax.lax.map(lambda picked: _discrepancy(a_ND[picked[0]], b_MD[picked[1]]), (rows_SK, columns_SK))


def _discrepancy(x_KD, y_KD):
  within = sum(_sum_of_rows(k - jnp.diag(jnp.diag(k))) for k in (_kernel(x_KD, x_KD), _kernel(y_KD, y_KD)))
  size = len(x_KD)
  return within / (size * (size - 1)) - 2 * _sum_of_rows(_kernel(x_KD, y_KD)) / size**2


def _kernel(x_KD, y_KD):
  product = functools.partial(jnp.dot, precision=jax.lax.Precision.HIGHEST)
  z = product(x_KD, y_KD.T) / x_KD.shape[1]
  # (z + 1)^3 - 1: the constant would cancel between the terms, and cost digits before.
  return z * (3 + z * (3 + z))


def _sum_of_rows(k):
  return k.sum(1).sum()
