"""Convolutions by any window: values against XLA's own, and gradients by both ways of computing them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxface import cpu_conv, plain_conv
from jaxface.conv import convolve, convolve_transpose


def _native(x, kernel, stride, pad):
  return lax.conv_general_dilated(
    x, kernel, (stride, stride), ((pad, pad),) * 2, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )


# Size, stride, pad, channels in and out: shifts of x by 1 and by 2, of y, of x where y has fewer channels, an odd rest.
@pytest.mark.parametrize(
  'case', [(7, 1, 3, 2, 5), (7, 1, 3, 5, 2), (4, 1, 1, 6, 1), (4, 2, 1, 3, 4), (4, 2, 1, 4, 3), (3, 2, 0, 2, 2)]
)
@pytest.mark.parametrize('chunk', [0, 2**24])
def test_convolution_and_its_gradients(case, chunk, monkeypatch):
  monkeypatch.setattr(cpu_conv, '_CHUNK_BYTES', chunk)
  size, stride, pad, inputs, outputs = case
  rng = np.random.default_rng(0)
  x = rng.standard_normal((3, 10, 12, inputs)).astype(np.float32)
  kernel = rng.standard_normal((size, size, inputs, outputs)).astype(np.float32)

  @jax.jit
  def both(x, kernel):
    ours = lambda x, kernel: convolve(x, kernel, stride=stride, pad=pad)
    native = lambda x, kernel: _native(x, kernel, stride, pad)
    found = []
    for function in (ours, native):
      y, pull = jax.vjp(function, x, kernel)
      found.append((y, pull(jnp.sin(y))))
    # What other backends run.
    geometry = plain_conv.Geometry(stride, pad, *x.shape[1:3], *found[1][0].shape[1:3], size)
    return *found, plain_conv.kernel_gradient(geometry, x, jnp.sin(found[1][0]))

  (y, gradients), (expected, expected_gradients), by_window = both(x, kernel)
  np.testing.assert_allclose(y, expected, atol=1e-4)
  for ours, theirs in zip(gradients, expected_gradients, strict=True):
    np.testing.assert_allclose(ours, theirs, atol=2e-3)
  np.testing.assert_allclose(by_window, expected_gradients[1], atol=2e-3)


def test_transposed_convolution_is_what_it_says():
  rng = np.random.default_rng(0)
  y = rng.standard_normal((2, 3, 5, 4)).astype(np.float32)
  kernel = rng.standard_normal((4, 4, 3, 4)).astype(np.float32)
  expected = np.zeros((2, 8, 12, 3), np.float32)  # With the border that pad=1 cuts off.
  for i in range(3):
    for j in range(5):
      expected[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += np.einsum('bo,hwio->bhwi', y[:, i, j], kernel)

  @jax.jit
  def run(y, kernel):
    loss = lambda y, kernel: jnp.sum(jnp.sin(convolve_transpose(y, kernel, stride=2, pad=1)))
    return convolve_transpose(y, kernel, stride=2, pad=1), jax.grad(loss, (0, 1))(y, kernel)

  value, (dy, dkernel) = run(y, kernel)
  np.testing.assert_allclose(value, expected[:, 1:-1, 1:-1], atol=1e-4)
  # The form is linear in each: both gradients by the cosine's product.
  cosine = np.zeros_like(expected)
  cosine[:, 1:-1, 1:-1] = np.cos(value)
  windows = np.stack([cosine[:, a : a + 5 : 2, b : b + 9 : 2] for a in range(4) for b in range(4)]).reshape(
    4, 4, 2, 3, 5, 3
  )
  np.testing.assert_allclose(dy, np.einsum('klbhwi,klio->bhwo', windows, kernel), atol=1e-3)
  np.testing.assert_allclose(dkernel, np.einsum('klbhwi,bhwo->klio', windows, y), atol=1e-3)
