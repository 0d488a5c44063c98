"""Convolutions of fewer multiplications against XLA's own, in float64 where the question is how exact they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxface import conv, winograd

SIZES = [(4, 4), (18, 16), (7, 9), (1, 3)]


def plain(x, kernel):
  return lax.conv_general_dilated(x, kernel, (1, 1), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def _draw(size, inputs, outputs, batch=4):
  rng = np.random.default_rng(0)
  shapes = (batch, size[0] + 2, size[1] + 2, inputs), (3, 3, inputs, outputs), (batch, *size, outputs)
  return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def assert_close(actual, expected, atol):
  assert actual.shape == expected.shape
  np.testing.assert_allclose(actual, expected, rtol=0, atol=atol * np.abs(expected).max())


# All pictures at once, or one by one.
@pytest.mark.parametrize('limit', [2**30, 1])
@pytest.mark.parametrize('size', SIZES)
def test_values_equal_those_of_plain_convolutions(size, limit, monkeypatch):
  for name in ('_CHUNK_BYTES', '_CONVOLVED_BYTES'):
    monkeypatch.setattr(winograd, name, limit)
  x, kernel, y = _draw(size, 5, 6)
  # Functions of their own: what was traced under another limit would be found again.
  convolve, kernel_gradient = (jax.jit(lambda *a, f=f: f(*a)) for f in (winograd.convolve, winograd.kernel_gradient))
  for program in (convolve.lower(x, kernel), kernel_gradient.lower(x, y)):
    assert ('stablehlo.while' in program.as_text()) == (limit == 1)
  assert_close(convolve(x, kernel), plain(x, kernel), 5e-6)
  expected = jax.vjp(lambda kernel: plain(x, kernel), jnp.asarray(kernel))[1](y)[0]
  assert_close(kernel_gradient(x, y), expected, 2e-5)


def test_five_digits_stay_at_the_sizes_of_the_networks():
  x, kernel, y = _draw((36, 36), 64, 64, batch=2)
  with jax.enable_x64(True):
    exact = plain(*(jnp.asarray(t, jnp.float64) for t in (x, kernel)))
    exact_gradient = jax.vjp(lambda k: plain(x.astype(np.float64), k), kernel.astype(np.float64))[1](
      y.astype(np.float64)
    )[0]
  assert_close(jax.jit(winograd.convolve)(x, kernel), exact, 1e-5)
  assert_close(jax.jit(winograd.kernel_gradient)(x, y), exact_gradient, 1e-5)


def _lower(x, kernel, platform):
  gradients = jax.grad(lambda x, kernel: jnp.sum(jnp.sin(conv.conv3x3(x, kernel))), (0, 1))
  return jax.jit(gradients).trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()


def test_layers_of_many_channels_and_pixels_are_convolved_so_on_cpu_only():
  def count(side, channels, dtype, platform):
    x = jax.ShapeDtypeStruct((2, side, side, channels), dtype)
    kernel = jax.ShapeDtypeStruct((3, 3, channels, channels), dtype)
    return _lower(x, kernel, platform).count('stablehlo.convolution')

  # The convolution and its transpose by four each; plain ones are one each, and a third is the kernel's gradient.
  assert count(16, 64, jnp.float32, 'cpu') == 8
  assert count(12, 64, jnp.float32, 'cpu') == count(16, 32, jnp.float32, 'cpu') == 2
  assert count(16, 64, jnp.bfloat16, 'cpu') == 2
  assert count(16, 64, jnp.float32, 'tpu') == count(16, 64, jnp.float32, 'cuda') == 3
