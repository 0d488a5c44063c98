"""KID against the definition in float64, and what an unbiased estimate promises."""

import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.metrics.kid import kid


def _features(count, shift=0.0, seed=0):
  return np.random.default_rng(seed).random((count, 16), np.float32) + np.float32(shift)


def _definition(x, y):
  def kernel(a, b):
    return (a.astype(np.float64) @ b.astype(np.float64).T / a.shape[1] + 1) ** 3

  def others(k):
    return (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))

  return others(kernel(x, x)) + others(kernel(y, y)) - 2 * kernel(x, y).mean()


def test_whole_sets_match_the_definition():
  x, y = _features(30), _features(30, 0.2, seed=1)
  found = kid(x, y, subsets=3)
  assert found.subset_size == 30
  # Every subset is the whole set.
  np.testing.assert_allclose(found.mean, _definition(x, y), rtol=1e-5)
  np.testing.assert_allclose(found.std, 0, atol=1e-6)
  assert kid(y, x, subsets=3).mean == pytest.approx(found.mean, rel=1e-5)


def test_subsets_estimate_the_same_number_whatever_their_size():
  x, y = _features(400), _features(300, 0.2, seed=1)
  small, large = kid(x, y, subsets=400, subset_size=10), kid(x, y, subsets=50, subset_size=100)
  assert small.std > 2 * large.std
  assert small.mean == pytest.approx(large.mean, abs=4 * small.std / np.sqrt(400))
  assert kid(x, y, subset_size=10) == kid(x, y, subset_size=10) != kid(x, y, subset_size=10, seed=1)


def test_sets_alike_are_near_0():
  found = kid(_features(300), _features(300, seed=1), subsets=20, subset_size=100)
  assert abs(found.mean) < found.std


def test_what_has_no_kid_is_refused():
  with pytest.raises(UserError, match='two pictures'):
    kid(_features(1), _features(30))
  with pytest.raises(UserError, match=r'\(30, 16\) and \(30, 8\)'):
    kid(_features(30), _features(30)[:, :8])


def test_all_of_either_set_is_drawn_from():
  x, y = _features(60), _features(30, seed=1)
  far = y.copy()
  far[15:] += 3
  found = kid(x[:15], far, subsets=200, subset_size=10)
  assert found.mean == pytest.approx(kid(far, x[:15], subsets=200, subset_size=10).mean, rel=0.2)
  assert found.mean > 10 * abs(kid(x[:15], y, subsets=200, subset_size=10).mean)
  # The smaller set says how many are in a subset, whichever it is.
  assert kid(x, y, subsets=2).subset_size == kid(y, x, subsets=2).subset_size == 30
