"""Checkpoints of IPM-Net's networks, there and back."""

import jax
import numpy as np
import pytest

from jaxface import convert
from jaxface.errors import UserError
from jaxface.models.ipmnet import IPMNet, MultiScaleDiscriminator
from tests.golden import load

MODULES = {
  'ipmnet_generator': IPMNet(dim=2, mlp_dim=5, style_dim=3, num_downsamples=3, num_blocks=2),
  'ipmnet_discriminator': MultiScaleDiscriminator(dim=3, num_layers=2, num_scales=4),
}


def _random(system):
  pictures = [np.zeros((1, 64, 64, 3), np.float32)] * (2 if system == 'ipmnet_generator' else 1)
  shapes = jax.eval_shape(MODULES[system].init, jax.random.key(0), *pictures)
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), shapes)


@pytest.mark.parametrize('system', MODULES)
def test_round_trip_recovers_module_and_variables(system):
  variables = _random(system)
  back, restored = convert.from_reference(system, convert.to_reference(system, variables))
  assert back == MODULES[system]
  jax.tree.map(np.testing.assert_array_equal, restored, variables)


@pytest.mark.parametrize(
  ('system', 'case'),
  [('ipmnet_generator', 'generator_small'), ('ipmnet_discriminator', 'discriminator_small')],
)
def test_public_names_are_given_back_all(system, case):
  _, state, _ = load(f'ipmnet/{case}')
  back = convert.to_reference(system, convert.from_reference(system, state)[1])
  assert back.keys() == state.keys()
  for name, tensor in state.items():
    assert back[name].shape == tensor.shape, name
    # What is never used comes back without its values.
    if not name.startswith('sf.') and 'running' not in name:
      np.testing.assert_array_equal(back[name], tensor, err_msg=name)


def test_what_nothing_reads_may_be_missing_or_more():
  state = convert.to_reference('ipmnet_generator', _random('ipmnet_generator'))
  expected = convert.from_reference('ipmnet_generator', state)[1]
  fewer = {f'module.{name}': t for name, t in state.items() if 'running' not in name and not name.startswith('sf.')}
  more = {**state, 'enc_content.model.0.norm.running_mean': np.ones(2)}
  for changed in (fewer, more):
    actual = convert.from_reference('ipmnet_generator', changed)[1]
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_misfits_are_listed_in_one_error():
  state = convert.to_reference('ipmnet_generator', _random('ipmnet_generator'))
  del state['dec.model.2.norm.gamma']
  state['dec.extra'] = np.zeros(2)
  state['enc_style.model.6.weight'] = state['enc_style.model.6.weight'][:, :2]
  with pytest.raises(
    UserError, match='ipmnet_generator checkpoint: 1 missing: dec.model.2.norm.gamma; 1 unexpected: dec.extra; 1 miss'
  ) as e:
    convert.from_reference('ipmnet_generator', state)
  assert 'enc_style.model.6.weight (3, 2, 1, 1) instead of (3, 8, 1, 1)' in str(e.value)
  for system in MODULES:
    with pytest.raises(UserError, match=f'no {system} checkpoint: .* missing'):
      convert.from_reference(system, {})
