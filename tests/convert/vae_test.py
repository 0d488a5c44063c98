"""Keras checkpoints of the face-mask VAE, there and back."""

import jax
import numpy as np
import pytest

from jaxface import convert
from jaxface.errors import UserError
from jaxface.models.vae import FaceMaskVAE, stage_widths


def _random(size=20, multiplier=1 / 16, **options):
  """A module and random variables, as numpy arrays."""
  module = FaceMaskVAE(size, *stage_widths(size, multiplier), latent_dim=32, sampling='reference').clone(**options)
  shapes = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, size, size, 3), np.float32))
  rng = np.random.default_rng(0)
  return module, jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), shapes)


def _state(**options):
  return convert.to_reference('vae', _random(**options)[1])


@pytest.mark.parametrize(('size', 'with_mask'), [(16, True), (16, False), (100, True)])
def test_round_trip_recovers_module_and_variables(size, with_mask):
  module, variables = _random(size, **({} if with_mask else {'mask_widths': ()}))
  state = convert.to_reference('vae', variables)
  back, restored = convert.from_reference('vae', state, image_size=size)
  assert back == module
  jax.tree.map(np.testing.assert_array_equal, restored, variables)
  assert ('out_image.kernel' in state) != with_mask


def test_size_is_144_where_the_depth_fits_and_a_power_of_two_elsewhere():
  assert convert.from_reference('vae', _state(size=128))[0].image_size == 144
  assert convert.from_reference('vae', _state(size=20))[0].image_size == 16


def test_a_size_of_another_depth_is_refused():
  with pytest.raises(UserError, match='encoder_widths has 4 stages, but 144 pixels'):
    convert.from_reference('vae', _state(size=20), image_size=144)


def test_order_and_first_counters_do_not_matter():
  state = _state()
  first = {'conv2d': 25, 'conv2d_transpose': 14, 'batch_normalization': 39, 'dense': 1}

  def renumbered(name):
    layer, _, weight = name.partition('.')
    kind, _, number = layer.rpartition('_') if layer[-1].isdigit() else (layer, '', '0')
    return f'{kind}_{int(number) + first[kind]}.{weight}' if kind in first else name

  shuffled = {renumbered(name): state[name] for name in reversed(state)}
  assert 'conv2d_25.kernel' in shuffled
  assert 'conv2d.kernel' not in shuffled
  module, variables = convert.from_reference('vae', shuffled)
  expected_module, expected = convert.from_reference('vae', state)
  assert module == expected_module
  jax.tree.map(np.testing.assert_array_equal, variables, expected)


def test_misfits_are_listed_in_one_error():
  state = _state()
  del state['conv2d_3.kernel'], state['z_mean.bias']
  state['embedding.kernel'] = np.zeros((2, 2))
  state['conv2d_1.kernel'] = state['conv2d_1.kernel'][:2]
  with pytest.raises(UserError) as caught:
    convert.from_reference('vae', state)
  message = str(caught.value)
  assert 'missing: conv2d_3.kernel, z_mean.bias' in message
  assert '1 unexpected: embedding.kernel' in message
  assert 'conv2d_1.kernel (2, 3, 2, 2) instead of (3, 3, 2, 2)' in message
  assert '\n' not in message


def test_a_long_list_is_cut_short_and_counted():
  state = {name: array for name, array in _state().items() if not name.startswith('batch_normalization_1')}
  with pytest.raises(UserError, match=r'missing: (\S+, ){3}\S+ and \d+ more'):
    convert.from_reference('vae', state)


@pytest.mark.parametrize('state', [{}, {'conv1.weight': np.zeros((64, 3, 7, 7))}])
def test_another_network_is_recognised_as_such(state):
  with pytest.raises(UserError, match='no vae checkpoint: 0 conv2d'):
    convert.from_reference('vae', state)


def test_an_unknown_system_is_named_with_the_known_ones():
  with pytest.raises(UserError, match=r"unknown system 'gan'.*vae"):
    convert.from_reference('gan', {})
