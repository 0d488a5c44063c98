"""VIF against stored float64 numbers of sewar, and piq for the gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.metrics.vif import vif
from tests.golden import load

# These programs run once: compiling them costs far more than running them, optimized or not.
quick_jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


@pytest.fixture(scope='module')
def golden():
  return load('ssim/vif')[2]


def test_rgb_matches_the_golden(golden):
  reference, distorted = golden['reference'] / 255, golden['distorted'] / 255
  contrast = np.clip(np.round(1.3 * (golden['reference'] - 128) + 128), 0, 255) / 255
  measure = quick_jit(vif)
  # The stored tolerance is 1e-3; float32 stays a hundred times closer.
  np.testing.assert_allclose(measure(reference, distorted), golden['vifp_rgb'], atol=1e-5)
  np.testing.assert_allclose(measure(distorted, reference), golden['vifp_rgb_swapped'], atol=1e-5)
  np.testing.assert_allclose(measure(reference, contrast), golden['vifp_contrast'], atol=1e-5)
  np.testing.assert_allclose(measure(reference, reference), golden['vifp_same'], atol=1e-5)


def test_luma_and_its_gradient_match_the_golden(golden):
  reference, distorted = golden['reference'] / 255, golden['distorted'] / 255

  @quick_jit
  @functools.partial(jax.grad, has_aux=True)
  def gradient_and_scores(distorted):
    scores = vif(reference, distorted, luma=True)
    return scores.mean(), scores

  gradient, scores = gradient_and_scores(distorted)
  np.testing.assert_allclose(scores, golden['vifp_luma'], atol=1e-5)
  expected = golden['grad_piq'] * 255  # the stored one is with respect to pictures in 0..255
  np.testing.assert_allclose(gradient[:, ::4, ::4], expected, rtol=0, atol=1e-3 * np.abs(expected).max())


def test_luma_is_multiplied_in_float32_on_any_backend():
  picture = jax.ShapeDtypeStruct((1, 41, 41, 3), jnp.float32)
  # Tests ask for the highest everywhere.
  with jax.default_matmul_precision('default'):
    traced = jax.jit(functools.partial(vif, luma=True)).trace(picture, picture)
    program = traced.lower(lowering_platforms=('tpu',)).as_text()
  lines = [line for line in program.splitlines() if 'dot_general' in line or 'stablehlo.convolution' in line]
  assert all(line.count('HIGHEST') == 2 for line in lines)


def test_flat_pictures_are_defined_and_gradients_finite():
  rng = np.random.default_rng(0)
  busy = rng.random((1, 41, 43, 3), np.float32)
  flat = np.full_like(busy, 0.7)
  reference = np.concatenate([flat, flat, busy, busy, 0 * flat, busy])
  distorted = np.concatenate([flat, busy, flat, 1 - busy, 0 * flat, busy])

  @quick_jit
  @functools.partial(jax.grad, has_aux=True)
  def gradient_and_scores(distorted):
    scores = vif(reference, distorted)
    return scores.sum(), scores

  gradient, scores = gradient_and_scores(distorted)
  np.testing.assert_allclose(scores, [1, 1, 0, 0, 1, 1], atol=1e-4)
  assert jnp.isfinite(gradient).all()
  assert gradient[5].any()


def test_brightness_does_not_matter_and_leading_axes_are_kept():
  rng = np.random.default_rng(0)
  a = 0.5 * rng.random((2, 2, 41, 41, 3), np.float32)
  b = np.clip(a + 0.05 * rng.standard_normal(a.shape), 0, 0.5)
  measure = quick_jit(vif)
  score = measure(a, b)
  assert score.shape == (2, 2)
  np.testing.assert_allclose(measure(a, b + 0.3), score, atol=1e-4)


def test_small_or_grey_pictures_are_refused():
  with pytest.raises(UserError, match=r'41 pixels.*40x64'):
    vif(np.zeros((1, 40, 64, 3), np.float32), np.zeros((1, 40, 64, 3), np.float32))
  with pytest.raises(UserError, match='1 channels'):
    vif(np.zeros((1, 41, 41, 1), np.float32), np.zeros((1, 41, 41, 1), np.float32), luma=True)
