"""Pixel-wise metrics: closed forms, one value per picture, finite gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.metrics.pixel import l1, psnr, rmse


def test_closed_forms_per_picture():
  a = np.zeros((3, 4, 6, 3), np.float32)
  b = a.copy()
  b[1] = 0.1
  b[2, :2] = 0.4  # half of the pixels
  np.testing.assert_allclose(l1(a, b), [0, 0.1, 0.2], atol=1e-6)
  np.testing.assert_allclose(rmse(a, b), [0, 0.1, 0.4 / np.sqrt(2)], atol=1e-6)
  np.testing.assert_allclose(psnr(a, b), [100, 20, -10 * np.log10(0.08)], rtol=1e-5)
  np.testing.assert_allclose(psnr(255 * a, 255 * b, max_val=255), psnr(a, b), rtol=1e-5)


@pytest.mark.parametrize('metric', [l1, rmse, psnr])
def test_gradient_is_finite_for_equal_pictures_and_not_lost_for_others(metric):
  a = np.random.default_rng(0).random((2, 5, 5, 3), np.float32)
  b = a.copy()
  b[1] += 0.01
  gradient = jax.jit(jax.grad(lambda b: metric(a, b).sum()))(b)
  assert jnp.isfinite(gradient).all()
  assert gradient[1].all()
  if metric is not l1:  # no root, no logarithm: nothing to guard
    assert not gradient[0].any()


@pytest.mark.parametrize('metric', [l1, rmse, psnr])
def test_half_precision_is_computed_in_float32_and_integers_are_refused(metric):
  a = jnp.full((2, 3, 8, 8, 3), 0.5, jnp.bfloat16)
  assert metric(a, a).dtype == jnp.float32
  assert metric(a, a).shape == (2, 3)
  with pytest.raises(UserError, match='uint8'):
    metric(np.zeros((1, 4, 4, 3), np.uint8), np.zeros((1, 4, 4, 3), np.uint8))
