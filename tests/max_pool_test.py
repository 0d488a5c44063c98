import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxface.max_pool import hanging_over, max_pool2x2, max_pool3x3

AROUND = ((1, 1), (1, 1))


@pytest.mark.parametrize(
  ('size', 'padding', 'sides'),
  [
    (2, None, (2, 2)),
    (2, None, (6, 8)),
    (2, None, (9, 5)),
    (3, AROUND, (8, 8)),
    (3, AROUND, (7, 10)),
    (3, ((0, 0), (0, 0)), (9, 8)),
    (3, ((0, 1), (0, 0)), (2, 10)),
  ],
)
def test_gradient_is_xlas_where_pixels_tie(size, padding, sides):
  # Whole numbers 0..2: nearly every square holds its largest number more than once.
  x = np.random.default_rng(0).integers(0, 3, (2, *sides, 3)).astype(np.float32)
  fast = max_pool2x2 if size == 2 else functools.partial(max_pool3x3, padding=padding)

  def plain(x):
    return nn.max_pool(x, (size, size), (2, 2), padding or 'VALID')

  weights = np.random.default_rng(1).standard_normal(plain(x).shape).astype(np.float32)

  def gradient(pool):
    return jax.grad(lambda x: jnp.sum(weights * pool(x) ** 3))

  def second(pool):
    return jax.grad(lambda x: jnp.sum(jnp.square(gradient(pool)(x))))

  for derive in (lambda f: f, gradient, second):
    # To rounding: a pixel that wins several windows gets their sum, in one order or another.
    np.testing.assert_allclose(jax.jit(derive(fast))(x), jax.jit(derive(plain))(x), rtol=1e-5, atol=1e-5)


def test_gradient_goes_to_the_first_of_equal_pixels():
  gradient = jax.jit(jax.grad(lambda x: max_pool2x2(x).sum()))(np.ones((1, 5, 4, 1), np.float32))
  np.testing.assert_array_equal(
    gradient[0, :, :, 0], [[1, 0, 1, 0], [0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
  )


@pytest.mark.parametrize('size', [(8, 8), (7, 10), (9, 9), (2, 3)])
def test_squares_hang_over_even_edges(size):
  x = np.random.default_rng(1).normal(size=(2, *size, 3)).astype(np.float32)
  out = [side // 2 for side in size]
  expected = np.empty((2, *out, 3), np.float32)
  for row, column in np.ndindex(*out):
    expected[:, row, column] = x[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3].max((1, 2))
  np.testing.assert_array_equal(max_pool3x3(x, hanging_over(x)), expected)


def test_only_tpus_scatter():
  traced = jax.jit(jax.grad(lambda x: max_pool3x3(x, AROUND).sum())).trace(np.ones((1, 8, 8, 2), np.float32))
  programs = {name: traced.lower(lowering_platforms=(name,)).as_text() for name in ('cpu', 'cuda', 'tpu')}
  assert {name: 'select_and_scatter' in text for name, text in programs.items()} == {
    'cpu': False,
    'cuda': False,
    'tpu': True,
  }
