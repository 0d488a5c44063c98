"""LPIPS against stored numbers of the reference; identities of a distance; gradients where the reference has none."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.convert import lpips as convert
from jaxface.errors import UserError
from jaxface.metrics.lpips import CHANNELS, NETS, Lpips, unit_length
from tests.golden import load

quick_jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})

# The published linear weights have a licence of their own, and do not lie in this repository.
_LINEAR = Path(__file__).parents[3] / 'shared' / 'goldens' / 'lpips'


def _linear(net):
  path = _LINEAR / f'lin_{net}.npz'
  if not path.is_file():
    pytest.skip(f'the published linear weights are not in {_LINEAR}')
  with np.load(path) as arrays:
    return {f'lin{tap}.model.1.weight': arrays[f'lin{tap}'][None, :, None, None] for tap in range(len(arrays.files))}


def _flat_linear(net):
  return {f'lin{tap}.model.1.weight': np.ones((1, c, 1, 1), np.float32) for tap, c in enumerate(CHANNELS[net])}


def _nhwc(x):
  """The reference's pictures, [B, C, H, W] in [-1, 1], as ours."""
  return (x.transpose(0, 2, 3, 1) + 1) / 2


@functools.cache
def _case(net):
  _, backbone, golden = load(f'lpips/{net}_64')
  return backbone, golden, _nhwc(golden['x0']), _nhwc(golden['x1'])


@functools.cache
def _measure(net):
  """One program for all tests of a network: terms, map, and the gradient with respect to the second pictures."""
  module = Lpips(net)

  @quick_jit
  def measure(variables, a, b):
    def total(b):
      terms = module.apply(variables, a, b, method='terms')
      return terms.sum(), (terms, module.apply(variables, a, b, method='spatial'))

    gradient, (terms, spatial) = jax.grad(total, has_aux=True)(b)
    return terms, spatial, gradient

  return measure


@pytest.mark.parametrize('net', NETS)
def test_matches_the_golden(net):
  linear = _linear(net)
  backbone, golden, a, b = _case(net)
  module, variables = convert.from_reference(backbone | linear)
  assert module.net == net
  terms, spatial, gradient = _measure(net)(variables, a, b)
  np.testing.assert_allclose(terms, golden['per_layer'], rtol=3e-5)
  np.testing.assert_allclose(terms.sum(-1), golden['distance'], rtol=1e-5)
  np.testing.assert_allclose(spatial[:, ::4, ::4].transpose(0, 3, 1, 2), golden['spatial'], rtol=1e-5, atol=1e-6)
  expected = 2 * golden['grad_x1'].transpose(0, 2, 3, 1)
  error = np.abs(gradient[:, ::4, ::4] - expected) / np.abs(expected).max()
  # Where two entries under a max pool are nearly equal, rounding decides which one gets the gradient; VGG's golden has
  # such a place (float64 agrees with us there to 2e-6).
  assert error.max() < 1e-3
  assert np.median(error) < 1e-5


@pytest.mark.parametrize('net', NETS)
def test_without_linear_weights_matches_the_golden(net):
  backbone, golden, a, b = _case(net)
  _, variables = convert.from_reference(backbone | _flat_linear(net))
  np.testing.assert_allclose(_measure(net)(variables, a, b)[0].sum(-1), golden['baseline'], rtol=1e-5)


def test_equal_pictures_are_at_distance_0_and_order_does_not_matter():
  backbone, _, a, b = _case('alex')
  _, variables = convert.from_reference(backbone | _flat_linear('alex'))
  measure = _measure('alex')
  same, nowhere, gradient = measure(variables, a, a)
  assert not same.any()
  assert not nowhere.any()
  # A program may compute the two equal halves in different ways.
  assert np.abs(gradient).max() < 1e-9
  np.testing.assert_allclose(measure(variables, a, b)[0], measure(variables, b, a)[0], rtol=1e-6)


def test_gradients_are_finite_where_a_tap_is_all_zero():
  backbone, _, a, b = _case('alex')
  # Biases this low leave nothing of the first activation in dark places, and nothing at all of the second one.
  backbone = backbone | {'features.0.bias': np.full(64, -2.0, np.float32), 'features.3.bias': np.full(192, -1e6, 'f4')}
  _, variables = convert.from_reference(backbone | _flat_linear('alex'))
  terms, _, gradient = _measure('alex')(variables, a, b)
  assert terms[:, 0].all()
  assert not terms[:, 1].any()
  assert jnp.isfinite(gradient).all()
  assert gradient.any()


def test_lengths_are_one_but_for_zeros_which_have_no_gradient():
  x = jnp.array([[[[3.0, 4.0], [0.0, 0.0]]]])
  np.testing.assert_allclose(unit_length(x), [[[[0.6, 0.8], [0, 0]]]], rtol=1e-6)
  gradient = jax.grad(lambda x: unit_length(x)[..., 0].sum())(x)
  np.testing.assert_allclose(gradient, [[[[16 / 125, -12 / 125], [0, 0]]]], rtol=1e-5)


def test_wrong_input_says_what_is_right():
  with pytest.raises(UserError, match="unknown LPIPS network 'resnet'; choose from alex, vgg, squeeze"):
    Lpips('resnet')
  picture = jnp.zeros((1, 30, 64, 3))
  for a, b, message in (
    (picture, picture, r'sides from 31 on, not \(1, 30, 64, 3\)'),
    (picture[0], picture[0], 'RGB pictures'),
    (picture, picture[:, :, :32], 'cannot compare'),
    (picture.astype('uint8'), picture.astype('uint8'), 'give floats'),
  ):
    with pytest.raises(UserError, match=message):
      Lpips('alex').apply({}, a, b)


@pytest.mark.parametrize(('net', 'side'), [('alex', 31), ('vgg', 16), ('squeeze', 17)])
def test_the_smallest_picture_has_a_distance_and_a_smaller_one_has_none(net, side):
  shapes = jax.eval_shape(Lpips(net).init, jax.random.key(0), *[jnp.zeros((1, side, side, 3))] * 2)
  terms = jax.eval_shape(
    functools.partial(Lpips(net).apply, method='terms'), shapes, *[jnp.zeros((1, side, side, 3))] * 2
  )
  assert terms.shape == (1, len(CHANNELS[net]))
  with pytest.raises(UserError, match=f'sides from {side} on'):
    jax.eval_shape(Lpips(net).apply, shapes, *[jnp.zeros((1, side, side - 1, 3))] * 2)
