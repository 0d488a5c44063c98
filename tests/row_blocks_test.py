"""Convolutions by blocks of a row's pixels, against plain ones."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxface import conv, plain_conv, row_blocks
from jaxface.plain_conv import Geometry

FORMS = ('convolve', 'transpose', 'kernel_gradient')


def _geometry(size: int, stride: int, pad: int, height: int, width: int) -> Geometry:
  """Of as many pixels as windows reach."""
  outputs = [(side + 2 * pad - size) // stride + 1 for side in (height, width)]
  sides = [min(stride * (out - 1) + size - pad, side) for out, side in zip(outputs, (height, width), strict=True)]
  return Geometry(stride, pad, *sides, *outputs, size)


def _arrays(form: str, geometry: Geometry, inputs: int, outputs: int, normal) -> tuple[jax.Array, jax.Array]:
  x = normal(2, geometry.height, geometry.width, inputs)
  y = normal(2, geometry.out_height, geometry.out_width, outputs)
  kernel = normal(geometry.size, geometry.size, inputs, outputs)
  return {'convolve': (x, kernel), 'transpose': (y, kernel.swapaxes(2, 3)), 'kernel_gradient': (x, y)}[form]


# Rows that blocks fill, and do not; shorter than a block; without padding, and with more than 'same' has.
GEOMETRIES = [
  _geometry(*each)
  for each in (
    *((7, 1, 3, 9, 37), (3, 1, 1, 5, 16), (4, 1, 0, 8, 9), (7, 1, 0, 8, 38), (7, 1, 6, 8, 26)),
    *((3, 2, 0, 5, 17), (3, 2, 1, 6, 13), (4, 2, 1, 6, 16), (5, 3, 2, 7, 14), (11, 4, 2, 19, 23), (3, 1, 1, 2, 2)),
  )
]


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('geometry', GEOMETRIES)
def test_they_equal_plain_ones(form, geometry):
  rng = np.random.default_rng(0)
  normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  for inputs, outputs in ((3, 3), (5, 3), (16, 40), (130, 3)):
    arguments = _arrays(form, geometry, inputs, outputs, normal)
    found, expected = (getattr(module, form)(geometry, *arguments) for module in (row_blocks, plain_conv))
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize('form', FORMS)
def test_bfloat16_and_precision_are_kept(form):
  geometry = _geometry(7, 2, 3, 9, 37)._replace(precision=lax.Precision.HIGHEST)
  arguments = _arrays(form, geometry, 3, 3, lambda *shape: jnp.ones(shape, jnp.bfloat16))
  traced = jax.jit(lambda a, b: getattr(row_blocks, form)(geometry, a, b)).trace(*arguments)
  assert traced.out_info.dtype == jnp.bfloat16
  lines = [line for line in traced.lower().as_text().splitlines() if 'stablehlo.convolution' in line]
  assert lines
  assert all('HIGHEST' in line for line in lines)


def _kernels(rows: int, inputs: int, outputs: int, platform: str, stride: int = 1, blocks: bool = True) -> list[str]:
  """Shapes of the kernels of a convolution and of its two gradients, as a program for that platform has them."""

  def gradients(x, kernel):
    return jax.grad(
      lambda x, kernel: jnp.sin(conv.convolve(x, kernel, stride=stride, pad=1, blocks=blocks)).sum(), (0, 1)
    )(x, kernel)

  shapes = (rows, 8, 32, inputs), (3, 3, inputs, outputs)
  traced = jax.jit(gradients).trace(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
  text = traced.lower(lowering_platforms=(platform,)).as_text()
  return re.findall(r'stablehlo\.convolution.*: \(tensor<\w+>, tensor<(\w+)xf32>\)', text)


@pytest.mark.parametrize(
  ('rows', 'inputs', 'outputs', 'stride', 'kernel'),
  [
    # Blocks that fill the units, of x and of y.
    (8, 64, 64, 1, '3x3x128x128'),
    (8, 16, 64, 1, '3x3x32x128'),
    (8, 64, 128, 2, '3x2x128x128'),
    (8, 128, 64, 1, '3x3x128x64'),
    # As many pictures fill them as well, but not with three channels.
    (128, 64, 64, 1, '3x3x64x64'),
    (128, 128, 3, 1, '3x18x128x48'),
  ],
)
def test_channels_fill_the_units(rows, inputs, outputs, stride, kernel):
  assert _kernels(rows, inputs, outputs, 'tpu', stride)[0] == kernel


def test_only_tpus_do_so_and_not_where_it_is_turned_off():
  plain = _kernels(8, 64, 64, 'cuda')
  assert plain[0] == '3x3x64x64'
  assert _kernels(8, 64, 64, 'tpu', blocks=False) == plain != _kernels(8, 64, 64, 'tpu')
  assert set(_kernels(8, 64, 64, 'cpu')).isdisjoint(_kernels(8, 64, 64, 'tpu'))
