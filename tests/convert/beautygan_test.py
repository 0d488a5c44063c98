"""Checkpoints of BeautyGAN's networks and of VGG-19, there and back."""

import jax
import numpy as np
import pytest

from jaxface import convert
from jaxface.convert.torchvision import to_torchvision
from jaxface.errors import UserError
from jaxface.models.beautygan import BeautyGenerator, PatchDiscriminator
from jaxface.models.vgg import VGG19, Vgg
from tests.golden import load

VGG = Vgg(('relu4_1',), VGG19, (2, 3, 4, 5, 6))


def _random(module, *pictures):
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(module.init, jax.random.key(0), *pictures)
  return jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), shapes)


_PICTURE = np.zeros((1, 48, 48, 3), np.float32)


@pytest.mark.parametrize(
  ('system', 'module', 'pictures'),
  [
    ('beautygan_generator', BeautyGenerator(3, 4), 2),
    ('beautygan_discriminator', PatchDiscriminator(2, 4), 1),
  ],
)
def test_round_trip_recovers_module_and_variables(system, module, pictures):
  variables = _random(module, *[_PICTURE] * pictures)
  state = convert.to_reference(system, variables)
  for prefix in ('', 'module.'):
    back, restored = convert.from_reference(system, {prefix + name: tensor for name, tensor in state.items()})
    assert back == module
    jax.tree.map(np.testing.assert_array_equal, restored, variables)


@pytest.mark.parametrize('network', ['generator', 'discriminator'])
def test_public_names_are_given_back_all(network):
  system = f'beautygan_{network}'
  _, state, _ = load(f'beautygan/{network}_small')
  back = convert.to_reference(system, convert.from_reference(system, state)[1])
  assert back.keys() == state.keys()
  for name, tensor in state.items():
    np.testing.assert_array_equal(back[name], tensor, err_msg=name)


def test_misfits_are_listed_in_one_error():
  _, state, _ = load('beautygan/generator_small')
  broken = {name: tensor for name, tensor in state.items() if name != 'main.4.main.1.bias'}
  broken |= {'branch_3.0.weight': np.zeros(2), 'main.5.weight': state['main.5.weight'].swapaxes(0, 1)}
  with pytest.raises(UserError, match=r'1 missing: main.4.main.1.bias; 1 unexpected: branch_3.0.weight') as error:
    convert.from_reference('beautygan_generator', broken)
  assert 'main.5.weight (32, 64, 4, 4) instead of (64, 32, 4, 4)' in str(error.value)
  with pytest.raises(UserError, match='no beautygan_discriminator checkpoint: .* missing.*unexpected'):
    convert.from_reference('beautygan_discriminator', state)
  for system in ('beautygan_generator', 'beautygan_discriminator', 'vgg19'):
    with pytest.raises(UserError, match=f'no {system} checkpoint: .* missing'):
      convert.from_reference(system, {})


def test_statistics_of_old_instance_norms_are_ignored():
  _, state, _ = load('beautygan/generator_small')
  old = state | {f'main.1.{name}': np.zeros(64) for name in ('running_mean', 'running_var')}
  new = convert.from_reference('beautygan_generator', state)[1]
  jax.tree.map(np.testing.assert_array_equal, convert.from_reference('beautygan_generator', old)[1], new)


def test_vgg_19_by_either_files_names():
  variables = _random(VGG, _PICTURE)
  named = convert.to_reference('vgg19', variables)
  assert len(named) == 18
  assert named['conv4_1.weight'].shape == (5, 4, 3, 3)
  behind = {'conv5_1.weight': np.zeros((6, 5, 3, 3)), 'conv4_2.bias': np.zeros(5)}
  numbered = to_torchvision(VGG, variables) | {'features.28.weight': behind['conv5_1.weight'], 'classifier.0.bias': 0}
  for state in (named | behind, numbered):
    module, restored = convert.from_reference('vgg19', state)
    assert module == VGG
    jax.tree.map(np.testing.assert_array_equal, restored, variables)
  with pytest.raises(UserError, match='1 missing: conv2_2.bias; 1 unexpected: fc6.weight'):
    convert.from_reference('vgg19', {n: t for n, t in named.items() if n != 'conv2_2.bias'} | {'fc6.weight': behind})
