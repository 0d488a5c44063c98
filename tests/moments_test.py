"""Variances by one look and by two."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.layers import BatchNorm
from jaxface.models.group_norm import group_norm
from jaxface.moments import variance


def _over_rows(values):
  return values.mean(0, keepdims=True)


def test_float32_is_looked_at_twice_and_bfloat16_once():
  x = (np.random.default_rng(0).standard_normal((64, 3)) + np.array([0, 2, -30])).astype(np.float32)
  for dtype in (jnp.float32, jnp.bfloat16):
    values = jnp.asarray(x, dtype)
    exact = np.asarray(values, np.float64)
    looked_at = []

    def average(squares, looked_at=looked_at):
      looked_at.append(squares)
      return _over_rows(squares)

    mean = _over_rows(values.astype(jnp.float32))
    found = variance(values, mean, average)
    # A mean of thirty deviations costs a thousand of float32's rounding errors.
    rtol = 1e-5 if dtype == jnp.float32 else 1e-3
    np.testing.assert_allclose(found, exact.var(0, keepdims=True), rtol=rtol)
    wanted = exact if dtype == jnp.bfloat16 else exact - exact.mean(0)
    np.testing.assert_allclose(looked_at[0], wanted**2, rtol=1e-3, atol=1e-4)


def test_channels_that_hardly_vary_keep_their_variance_in_float32():
  x = jnp.asarray(1000 + 1e-2 * np.random.default_rng(0).standard_normal((4096, 1)), jnp.float32)
  exact = np.asarray(x, np.float64).var()
  np.testing.assert_allclose(variance(x, _over_rows(x), _over_rows), exact, rtol=1e-2)


def test_flat_channels_have_no_negative_variance():
  x = jnp.broadcast_to(jnp.linspace(0.1, 30, 64).astype(jnp.bfloat16), (1000, 64))
  mean = _over_rows(x.astype(jnp.float32))
  found = variance(x, mean, _over_rows)
  assert (found >= 0).all()
  np.testing.assert_allclose(found / mean**2, 0, atol=1e-6)


@pytest.mark.parametrize('offset', [0, 3])
def test_norms_of_bfloat16_features_are_as_exact_as_these(offset):
  rng = np.random.default_rng(0)
  x = jnp.asarray(offset + rng.standard_normal((4, 8, 8, 6)), jnp.bfloat16)
  weights = rng.standard_normal(x.shape).astype(np.float32)
  norm = BatchNorm(dtype=jnp.float32)
  variables = norm.init(jax.random.key(0), x, train=True)
  ones = jnp.ones((1, 1, 1, 6))
  functions = (
    lambda x: norm.apply(variables, x, train=True, mutable=['batch_stats'])[0],
    lambda x: group_norm(x, ones, 0 * ones, groups=3),
  )
  for function in functions:
    gradient = jax.grad(lambda x, function=function: jnp.sum(weights * jnp.sin(function(x))))
    for derived in (function, gradient):
      # What bfloat16's features are float32's can be, too; only what is found of them may be rounded.
      found, expected = (np.asarray(derived(x.astype(dtype)), np.float32) for dtype in (jnp.bfloat16, jnp.float32))
      np.testing.assert_allclose(found, expected, rtol=2**-7, atol=2**-9 * np.abs(expected).max())
