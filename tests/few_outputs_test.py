"""Convolutions to few channels by several pixels at once, against plain ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxface import conv, few_outputs, plain_conv
from jaxface.plain_conv import Geometry


def _geometry(size: int, pad: int, height: int, width: int) -> Geometry:
  return Geometry(1, pad, height, width, height + 2 * pad - size + 1, width + 2 * pad - size + 1, size)


# Rows that sixteen pixels at once fill, and do not; shorter ones; without padding, and with more than 'same' has.
GEOMETRIES = [_geometry(*a) for a in ((7, 3, 9, 37), (3, 1, 5, 16), (4, 0, 8, 9), (7, 0, 8, 38), (7, 6, 8, 26))]


@pytest.mark.parametrize('geometry', GEOMETRIES)
@pytest.mark.parametrize('inputs', [3, 5])
def test_both_forms_equal_plain_ones(geometry, inputs):
  rng = np.random.default_rng(0)
  normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  x = normal(2, geometry.height, geometry.width, inputs)
  kernel, y = normal(geometry.size, geometry.size, inputs, 3), normal(2, geometry.out_height, geometry.out_width, 3)
  for name, second in (('convolve', kernel), ('kernel_gradient', y)):
    found, expected = (getattr(module, name)(geometry, x, second) for module in (few_outputs, plain_conv))
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max())


def test_bfloat16_and_precision_are_kept():
  geometry = _geometry(7, 3, 9, 37)._replace(precision=lax.Precision.HIGHEST)
  x, kernel = (jnp.ones(shape, jnp.bfloat16) for shape in ((2, 9, 37, 3), (7, 7, 3, 3)))
  assert few_outputs.kernel_gradient(geometry, x, x).dtype == few_outputs.convolve(geometry, x, kernel).dtype == x.dtype
  for function, second in ((few_outputs.convolve, kernel), (few_outputs.kernel_gradient, x)):
    text = jax.jit(lambda a, b, f=function: f(geometry, a, b)).lower(x, second).as_text()
    assert all('HIGHEST' in line for line in text.splitlines() if 'stablehlo.convolution' in line)


@pytest.mark.parametrize(('inputs', 'outputs', 'wide'), [(5, 3, 2), (5, 6, 0), (3, 6, 1)])
def test_only_tpus_do_so_where_outputs_are_few(inputs, outputs, wide):
  def gradients(x, kernel):
    return jax.grad(lambda x, kernel: jnp.sin(conv.convolve(x, kernel, pad=3)).sum(), (0, 1))(x, kernel)

  # Forward and of the kernel; or, where few channels go in, the gradient of these.
  x, kernel = jnp.ones((2, 20, 32, inputs)), jnp.ones((7, 7, inputs, outputs))
  traced = jax.jit(gradients).trace(x, kernel)
  programs = {name: traced.lower(lowering_platforms=(name,)).as_text() for name in ('cpu', 'cuda', 'tpu')}
  # Sixteen pixels at once.
  assert {name: text.count('16]') for name, text in programs.items()} == {'cpu': 0, 'cuda': 0, 'tpu': wide}
