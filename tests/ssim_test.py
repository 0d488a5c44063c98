"""SSIM and MS-SSIM against stored numbers of tf.image and dm-pix, and what they promise beyond those."""

import functools

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.filters import from_planes, gaussian, to_planes
from jaxface.metrics.vif import vif
from jaxface.ssim import ms_ssim, ssim
from tests.golden import load

# These programs run once: compiling them costs far more than running them, optimized or not.
quick_jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


def pictures(*shape, seed=0):
  """Two pictures in [0, 1] that resemble each other, with structure at several scales."""
  rng = np.random.default_rng(seed)
  coarse = rng.random((*shape[:-3], -(-shape[-3] // 8), -(-shape[-2] // 8), shape[-1]))
  a = coarse.repeat(8, -3).repeat(8, -2)[..., : shape[-3], : shape[-2], :] * 0.8 + 0.1
  b = np.clip(a + 0.1 * rng.standard_normal(shape), 0, 1)
  return a.astype(np.float32), b.astype(np.float32)


def assert_gradient_close(actual, expected, relative):
  np.testing.assert_allclose(actual, expected, rtol=0, atol=relative * np.abs(expected).max())


@pytest.mark.parametrize('size', [9, 11])
def test_ssim_and_its_gradient_match_the_golden(size):
  about, _, g = load('ssim/ssim')
  tolerance = about['tolerance']['max_abs']

  @jax.jit
  @functools.partial(jax.grad, has_aux=True)
  def gradient_and_values(b):
    values = ssim(g['a'], b, filter_size=size)
    return values.mean(), values

  gradient, values = gradient_and_values(g['b'])
  np.testing.assert_allclose(values, g[f'ssim_{size}'], atol=tolerance)
  np.testing.assert_allclose(values, g[f'dm_pix_ssim_{size}'], atol=tolerance)
  assert_gradient_close(gradient[:, ::3, ::3], g[f'grad_{size}'], 1e-3)
  _, inverted = gradient_and_values(1 - g['a'])
  np.testing.assert_allclose(inverted, g[f'ssim_{size}_inverted'], atol=tolerance)


def test_flat_pictures_differ_in_luminance_only():
  _, _, g = load('ssim/ssim')
  flat = np.ones((1, 32, 32, 3), np.float32)
  score = jax.jit(ssim)(0.5 * flat, 0.6 * flat)
  np.testing.assert_allclose(score, (2 * 0.5 * 0.6 + 1e-4) / (0.5**2 + 0.6**2 + 1e-4), atol=2e-5)
  # The stored number carries the rounding of float32 variances that should be 0, of some 1e-7 against C2 = 9e-4.
  np.testing.assert_allclose(score, g['ssim_flat'], atol=5e-4)


def test_map_is_dm_pix_own():
  a, b = pictures(2, 20, 26, 3)
  options = dict(filter_size=6, filter_sigma=1.2, k1=0.02, k2=0.05)
  expected = jax.jit(functools.partial(dm_pix.ssim, **options, return_map=True))(a, b)
  actual = jax.jit(functools.partial(ssim, **options, return_map=True))(a, b)
  assert actual.shape == (2, 15, 21, 3)
  # Single windows carry the rounding of their variances, means do not.
  np.testing.assert_allclose(actual, expected, atol=2e-4)
  mean = jax.jit(functools.partial(ssim, **options))(a, b)
  np.testing.assert_allclose(mean, expected.mean((1, 2, 3)), atol=1e-5)


def test_equal_pictures_score_one_and_order_does_not_matter():
  a, b = pictures(3, 24, 24, 3)
  score = jax.jit(ssim)
  np.testing.assert_allclose(score(a, a), 1, atol=1e-6)
  np.testing.assert_allclose(score(a, b), score(b, a), atol=1e-6)
  assert (score(a, b) < 0.95).all()


def test_negative_of_a_centred_picture_scores_minus_one():
  # Ripples around 0.5, as fast as the pixels: window means are equal, contrast is the exact opposite.
  ripple = 0.5 + 0.4 * (-1.0) ** np.add.outer(np.arange(24), np.arange(24))[None, :, :, None]
  np.testing.assert_allclose(jax.jit(ssim)(ripple, 1 - ripple), -1, atol=1e-2)


def test_leading_axes_types_and_range_are_only_a_matter_of_form():
  a, b = pictures(4, 16, 18, 3)
  score = jax.jit(ssim, static_argnames='max_val')
  expected = score(a, b)
  np.testing.assert_allclose(score(a.reshape(2, 2, 16, 18, 3), b.reshape(2, 2, 16, 18, 3)).ravel(), expected, atol=1e-6)
  np.testing.assert_allclose(score(a[0], b[0]), expected[0], atol=1e-6)
  np.testing.assert_allclose(score(255 * a, 255 * b, max_val=255.0), expected, atol=1e-5)
  half = score(jnp.asarray(a, jnp.bfloat16), jnp.asarray(b, jnp.bfloat16))
  assert half.dtype == jnp.float32
  np.testing.assert_allclose(half, expected, atol=2e-2)


def test_full_mask_changes_nothing_and_an_empty_one_gives_one_without_gradient():
  a, b = pictures(2, 20, 20, 3)
  score = jax.jit(lambda b, mask: ssim(a, b, mask=mask))
  np.testing.assert_allclose(score(b, np.ones((2, 20, 20, 1), np.float32)), jax.jit(ssim)(a, b), atol=1e-6)
  mask = np.stack([np.zeros((20, 20, 1), np.float32), np.ones((20, 20, 1), np.float32)])
  assert score(b, mask)[0] == 1
  in_b, in_mask = quick_jit(jax.grad(lambda b, mask: score(b, mask).sum(), (0, 1)))(b, mask)
  assert jnp.isfinite(in_b).all()
  assert jnp.isfinite(in_mask).all()
  assert not in_b[0].any()
  assert in_b[1].any()


def test_mask_weighs_windows_and_ignores_what_no_window_of_it_sees():
  a, b = pictures(1, 30, 30, 3)
  mask = np.zeros((1, 30, 30, 1), np.float32)
  mask[:, :12, :12] = 1
  masked = jax.jit(lambda b: ssim(a, b, mask=mask, filter_size=5))
  score = masked(b)
  spoilt = b.copy()
  spoilt[:, 16:] = 0.5
  spoilt[:, :, 16:] = 0.5
  np.testing.assert_allclose(masked(spoilt), score, atol=1e-6)
  spoilt[:, 15, 15] = 1 - spoilt[:, 15, 15]  # the last pixel that a window touching the mask still sees
  assert masked(spoilt) != score

  weights = np.zeros((26, 26))
  taps = np.outer(gaussian(5, 1.5), gaussian(5, 1.5))
  for y, x in np.ndindex(26, 26):
    weights[y, x] = (taps * mask[0, y : y + 5, x : x + 5, 0]).sum()
  values = np.asarray(jax.jit(functools.partial(ssim, filter_size=5, return_map=True))(a, b))[0].mean(-1)
  np.testing.assert_allclose(score, (weights * values).sum() / weights.sum(), atol=1e-6)


three_scales = functools.partial(ms_ssim, filter_size=5, power_factors=(0.3, 0.3, 0.4))


@pytest.mark.parametrize('measure', [ssim, three_scales], ids=['ssim', 'ms_ssim'])
def test_gradient_is_finite_on_flat_equal_black_and_inverted_pictures(measure):
  a, b = pictures(1, 17, 19, 1)
  flat = np.full_like(a, 0.5)
  pairs = [(a, b), (a, a), (a, 1 - a), (flat, flat), (flat, a), (flat * 0, flat * 0), (flat * 0, flat * 2), (a, flat)]
  first, second = (np.concatenate(x) for x in zip(*pairs, strict=True))
  gradients = quick_jit(jax.grad(lambda a, b: measure(a, b).sum(), (0, 1)))(first, second)
  for gradient in gradients:
    assert jnp.isfinite(gradient).all()
    assert gradient[0].any()


def test_ms_ssim_and_its_gradient_match_the_golden():
  about, _, g = load('ssim/ms_ssim')
  tolerance = about['tolerance']['max_abs']
  for i, size in enumerate(about['config']['filter_size']):
    a, b = g[f'a{i}'], g[f'b{i}']

    score = quick_jit(jax.value_and_grad(lambda b, a, size=size: ms_ssim(a, b, filter_size=size).sum()))
    value, gradient = score(b, a)
    three_scales = quick_jit(functools.partial(ms_ssim, filter_size=size, power_factors=(0.0448, 0.2856, 0.3001)))(a, b)
    np.testing.assert_allclose(value, g[f'ms_ssim{i}'][0], atol=tolerance)
    np.testing.assert_allclose(three_scales, g[f'ms_ssim{i}_3'], atol=tolerance)
    assert_gradient_close(gradient[:, ::5, ::5], g[f'grad{i}'], 2e-3)
    inverted, gradient = score(1 - a, a)
    np.testing.assert_allclose(inverted, g[f'ms_ssim{i}_inverted'][0], atol=tolerance)
    assert jnp.isfinite(gradient).all()


def test_one_scale_of_power_one_is_ssim():
  a, b = pictures(2, 3, 20, 20, 3)
  one_scale = jax.jit(functools.partial(ms_ssim, power_factors=(1.0,)))
  np.testing.assert_allclose(one_scale(a, b), jax.jit(ssim)(a, b), atol=1e-6)
  two_scales = jax.jit(functools.partial(ms_ssim, power_factors=(0.5, 0.5), filter_size=5))
  np.testing.assert_allclose(two_scales(a, a), 1, atol=1e-6)


def test_small_pictures_are_refused_with_what_would_work():
  a, _ = pictures(1, 144, 150, 3)
  with pytest.raises(UserError, match=r'144x150.*5 scales.*filter_size=11.*161.*filter_size up to 9.*4 power_factors'):
    ms_ssim(a, a)
  for works in ({'filter_size': 9}, {'power_factors': (0.25,) * 4}):
    assert jax.eval_shape(functools.partial(ms_ssim, **works), a, a).shape == (1,)
  with pytest.raises(UserError, match='at most 8'):
    ssim(a[:, :8, :9], a[:, :8, :9])
  with pytest.raises(UserError, match=r'filter_size up to 1$'):
    ms_ssim(a[:, :8], a[:, :8])


def test_unfit_input_is_refused():
  a, b = pictures(1, 16, 16, 3)
  with pytest.raises(UserError, match='uint8'):
    ssim((255 * a).astype(np.uint8), b)
  with pytest.raises(UserError, match='one shape'):
    ssim(a, b[:, 1:])
  with pytest.raises(UserError, match=r'need \(1, 16, 16, 1\)'):
    ssim(a, b, mask=np.ones((1, 16, 16)))
  with pytest.raises(UserError, match='either mask or return_map'):
    ssim(a, b, mask=np.ones((1, 16, 16, 1)), return_map=True)
  with pytest.raises(UserError, match='sigma 0'):
    ssim(a, b, filter_sigma=0)


@pytest.mark.parametrize('batch', [(0,), (2, 0)])
def test_no_pictures_have_no_scores(batch):
  x = jnp.zeros((*batch, 41, 41, 3))
  for measure in (ssim, functools.partial(ssim, mask=x[..., :1]), functools.partial(ms_ssim, filter_size=3), vif):
    assert measure(x, x).shape == batch
  assert ssim(x, x, return_map=True).shape == (*batch, 31, 31, 3)


def test_planes_come_back():
  x = np.arange(2 * 3 * 4 * 5 * 2.0).reshape(2, 3, 4, 5, 2)
  planes = to_planes(x)
  assert planes.shape == (4, 12, 5)
  np.testing.assert_array_equal(planes[:, 3], x[0, 1, :, :, 1])
  np.testing.assert_array_equal(from_planes(planes, (2, 3), x.shape[-1]), x)
