"""The CPU's formulations against XLA's own gradients of its own convolutions and pooling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxface import conv, cpu_conv


def plain_conv(x, kernel):
  return lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def plain_transpose(x, kernel, odd):
  after = 'VALID' if odd else 'SAME'
  numbers = ('NHWC', 'HWIO', 'NHWC')
  return lax.conv_transpose(x, kernel, (2, 2), after, dimension_numbers=numbers, transpose_kernel=True)


PAIRS = {
  'conv': (conv.conv3x3, plain_conv),
  'even': (lambda x, k: conv.conv_transpose3x3(x, k, odd=False), lambda x, k: plain_transpose(x, k, False)),
  'odd': (lambda x, k: conv.conv_transpose3x3(x, k, odd=True), lambda x, k: plain_transpose(x, k, True)),
}


def _inputs(kind, size, inputs, outputs, dtype=np.float32):
  rng = np.random.default_rng(0)
  channels = (inputs, outputs) if kind == 'conv' else (outputs, inputs)
  x = rng.standard_normal((4, *size, inputs)).astype(dtype)
  return x, rng.standard_normal((3, 3, *channels)).astype(dtype)


def _gradients(function):
  # A nonlinear loss, so that the second derivatives are not zero.
  return jax.grad(lambda x, kernel: jnp.sum(jnp.sin(function(x, kernel))), (0, 1))


def _penalty_gradients(function):
  def penalty(x, kernel):
    return sum(jnp.sum(jnp.square(gradient)) for gradient in _gradients(function)(x, kernel))

  return jax.grad(penalty, (0, 1))


def assert_close(actual, expected):
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.abs(b).max())


@pytest.mark.parametrize('kind', PAIRS)
# Few input channels, few output channels and as many of both shift x, y or both.
@pytest.mark.parametrize(
  ('size', 'inputs', 'outputs'), [((6, 5), 1, 8), ((6, 5), 6, 6), ((6, 5), 8, 1), ((2, 1), 3, 3)]
)
def test_values_and_derivatives_equal_those_of_plain_convolutions(kind, size, inputs, outputs):
  fast, plain = PAIRS[kind]
  arguments = _inputs(kind, size, inputs, outputs)
  for derive in (lambda f: f, _gradients, _penalty_gradients):
    assert_close(jax.jit(derive(fast))(*arguments), jax.jit(derive(plain))(*arguments))


# Through `winograd`, which otherwise larger convolutions take, and with as many outputs as go by phases or more.
@pytest.mark.parametrize('few_outputs', [0, 32])
@pytest.mark.parametrize('kind', PAIRS)
@pytest.mark.parametrize('size', [(6, 5), (4, 4), (1, 2)])
def test_the_forms_for_large_convolutions_equal_plain_ones(kind, size, few_outputs, monkeypatch):
  monkeypatch.setattr(conv, '_MANY_PIXELS', 1)
  monkeypatch.setattr(conv, '_MANY_CHANNELS', {'convolve': 1, 'kernel_gradient': 1})
  monkeypatch.setattr(conv, '_FEW_TRANSPOSED', few_outputs)
  monkeypatch.setattr(conv, '_TINY', 0)
  fast, plain = PAIRS[kind]
  arguments = _inputs(kind, size, 6, 5)
  for derive in (lambda f: f, _gradients, _penalty_gradients):
    assert_close(jax.jit(derive(fast))(*arguments), jax.jit(derive(plain))(*arguments))


def test_transposes_of_few_outputs_go_by_phases_on_cpu_only():
  def lower(outputs, platform):
    traced = jax.jit(PAIRS['odd'][0]).trace(*_inputs('odd', (6, 5), 2, outputs))
    return traced.lower(lowering_platforms=(platform,)).as_text().count('stablehlo.convolution')

  assert [lower(32, platform) for platform in ('cpu', 'tpu', 'cuda')] == [4, 1, 1]
  assert lower(33, 'cpu') == 1


@pytest.mark.parametrize('kind', PAIRS)
def test_kernel_gradients_in_chunks_equal_those_in_one(kind, monkeypatch):
  fast, plain = PAIRS[kind]
  arguments = _inputs(kind, (6, 5), 6, 6)
  monkeypatch.setattr(cpu_conv, '_CHUNK_BYTES', 1)
  program = jax.jit(_gradients(fast)).lower(*arguments).as_text()
  assert 'stablehlo.while' in program
  assert_close(jax.jit(_gradients(fast))(*arguments), jax.jit(_gradients(plain))(*arguments))


@pytest.mark.parametrize('kind', PAIRS)
@pytest.mark.parametrize('size', [(6, 5), (2, 2)])
def test_accelerators_get_plain_convolutions(kind, size):
  def lower(platform):
    # Ahead of time, for platforms that this machine does not have.
    traced = jax.jit(_gradients(PAIRS[kind][0])).trace(*_inputs(kind, size, 6, 6))
    return traced.lower(lowering_platforms=(platform,)).as_text()

  for platform in ('tpu', 'cuda'):
    assert lower(platform).count('stablehlo.convolution') == 3
    assert 'stablehlo.dot_general' not in lower(platform)
  assert 'stablehlo.dot_general' in lower('cpu')


@pytest.mark.parametrize(('size', 'stride'), [(3, 1), (4, 2), (3, 2), (7, 1)])
def test_convolutions_without_padding_equal_plain_ones_on_every_platform(size, stride):
  # With stride 2 the last row is in no window of four, the last column in none of three.
  rng = np.random.default_rng(0)
  x, kernel = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 9, 10, 3), (size, size, 3, 4)))

  def plain(x, kernel):
    return lax.conv_general_dilated(x, kernel, (stride,) * 2, 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))

  def fast(x, kernel):
    return conv.convolve(x, kernel, stride=stride)

  for derive in (lambda f: f, _gradients, _penalty_gradients):
    assert_close(jax.jit(derive(fast))(x, kernel), jax.jit(derive(plain))(x, kernel))
  traced = jax.jit(fast).trace(x, kernel)
  programs = [traced.lower(lowering_platforms=(platform,)).as_text() for platform in ('cpu', 'tpu', 'cuda')]
  assert [f'pad = [[0, {stride}], [0, 0]]' in program for program in programs] == [True, False, False]


def test_bfloat16_stays_bfloat16():
  x, kernel = (jnp.asarray(t, jnp.bfloat16) for t in _inputs('conv', (6, 5), 6, 6))
  dx, dkernel = jax.jit(jax.grad(lambda x, k: conv.conv3x3(x, k).astype(jnp.float32).sum(), (0, 1)))(x, kernel)
  assert (dx.dtype, dkernel.dtype) == (jnp.bfloat16, jnp.bfloat16)
  expected = jax.grad(lambda k: plain_conv(x.astype(jnp.float32), k).sum())(kernel.astype(jnp.float32))
  np.testing.assert_allclose(dkernel.astype(np.float32), expected, rtol=0.01, atol=0.01)


def test_transposed_convolution_adds_each_pixel_times_the_kernel():
  x, kernel = _inputs('even', (3, 2), 2, 4)
  expected = np.zeros((4, 7, 5, 4))
  for i in range(3):
    for j in range(2):
      expected[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3] += np.einsum('bc,hwoc->bhwo', x[:, i, j], kernel)
  np.testing.assert_allclose(conv.conv_transpose3x3(x, kernel, odd=True), expected, atol=1e-5)
  np.testing.assert_allclose(conv.conv_transpose3x3(x, kernel, odd=False), expected[:, :-1, :-1], atol=1e-5)
