"""PyTorch's resizes from their definitions; 2 to 82 and 3 to 7 pixels as PyTorch 2.13 gives them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import resize

X = np.random.default_rng(0).standard_normal((2, 7, 10, 3)).astype(np.float32)
SIZES = [(14, 20), (15, 23), (5, 4), (7, 1), (1, 30), (7, 10)]


def _interpolated(x, length, axis, align_corners):
  """By NumPy's own linear interpolation, which stays at the ends beyond them."""
  old = x.shape[axis]
  if align_corners:
    at = np.linspace(0, old - 1, length) if length > 1 else np.zeros(1)
  else:
    at = (np.arange(length) + 0.5) * old / length - 0.5
  return np.apply_along_axis(lambda line: np.interp(at, np.arange(old), line), axis, x)


@pytest.mark.parametrize('align_corners', [True, False])
@pytest.mark.parametrize('size', SIZES)
def test_bilinear_interpolates_without_antialiasing(size, align_corners):
  expected = _interpolated(_interpolated(X, size[0], 1, align_corners), size[1], 2, align_corners)
  actual = resize.bilinear(X, size, align_corners=align_corners)
  np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_bilinear_keeps_the_dtype_and_is_exact_in_float32_inside():
  half = resize.bilinear(jnp.asarray(X, jnp.bfloat16), (15, 23), align_corners=True)
  assert half.dtype == jnp.bfloat16
  full = resize.bilinear(np.asarray(jnp.asarray(X, jnp.bfloat16), np.float32), (15, 23), align_corners=True)
  np.testing.assert_allclose(half.astype(np.float32), full, rtol=2**-8)


@pytest.mark.parametrize(
  ('length', 'expected'),
  [(7, [0, 0, 0, 1, 1, 2, 2]), (6, [0, 0, 1, 1, 2, 2]), (3, [0, 1, 2]), (2, [0, 1]), (5, [0, 0, 1, 1, 2]), (1, [0])],
)
def test_nearest_takes_the_floor(length, expected):
  x = np.arange(6, dtype=np.uint8).reshape(1, 3, 2)
  np.testing.assert_array_equal(resize.nearest_indices(3, length), expected)
  actual = jax.jit(resize.nearest, static_argnums=1)(x, (length, 4))
  np.testing.assert_array_equal(actual, x[:, expected][:, :, [0, 0, 1, 1]])
  assert actual.dtype == np.uint8


def test_nearest_rounds_as_pytorch_does():
  x = np.arange(2).reshape(1, 2, 1)
  np.testing.assert_array_equal(np.ravel(resize.nearest(x, (82, 1))), [0] * 42 + [1] * 40)


def test_gradients_are_the_transposes():
  """<resize(x), y> = <x, gradient>, for the products, the broadcast and the gather alike."""
  rng = np.random.default_rng(1)
  for function in (lambda x, s: resize.bilinear(x, s, align_corners=True), resize.nearest):
    for size in ((14, 20), (15, 23)):
      y = rng.standard_normal((2, *size, 3)).astype(np.float32)
      value, gradient = jax.value_and_grad(lambda x, f=function, s=size, y=y: jnp.vdot(f(x, s), y))(X)
      np.testing.assert_allclose(np.vdot(X, gradient), value, rtol=1e-4)


def test_twice_is_nearest_on_every_platform_and_sums_its_gradient_in_float32():
  rng = np.random.default_rng(0)
  x = rng.standard_normal((2, 3, 5, 4)).astype(np.float32)
  y = rng.standard_normal((2, 6, 10, 4)).astype(np.float32)
  expected = resize.nearest(x, (6, 10))
  doubled, pull = jax.vjp(resize.twice, x)
  np.testing.assert_array_equal(doubled, expected)
  np.testing.assert_array_equal(resize._twice_as_channels(x), expected)
  summed = y.reshape(2, 3, 2, 5, 2, 4).sum((2, 4))
  np.testing.assert_allclose(pull(y)[0], summed, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(resize._sum_of_four_by_window(y), summed, rtol=1e-5, atol=1e-6)
  # In bfloat16 one half is lost beside 256, but not the four together.
  lost = jnp.full((1, 2, 2, 1), 0.5, jnp.bfloat16).at[0, 0, 0, 0].set(256)
  for form in (resize._sum_of_four, resize._sum_of_four_by_window):
    assert form(lost).dtype == jnp.bfloat16
    assert float(form(lost)[0, 0, 0, 0]) == 258

  traced = jax.jit(lambda x, y: jax.vjp(resize.twice, x)[1](y)).trace(x, y)
  programs = {name: traced.lower(lowering_platforms=(name,)).as_text() for name in ('cpu', 'cuda', 'tpu')}
  found = {name: 'stablehlo.reduce_window' in text for name, text in programs.items()}
  assert found == {'cpu': False, 'cuda': False, 'tpu': True}
