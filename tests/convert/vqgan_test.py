"""Checkpoints of the VQ autoencoder and its discriminator, there and back."""

import jax
import numpy as np
import pytest

from jaxface.convert import vqgan
from jaxface.errors import UserError
from jaxface.models.patchgan import PatchGAN
from jaxface.models.vqgan import VQGAN
from tests.golden import load

CONVERSIONS = {'vqgan': vqgan, 'discriminator': vqgan.discriminator}
# Widths that grow, stay, shrink, and begin with another than the first layer's: with shortcuts and without.
MODULES = {
  'vqgan': VQGAN(32, (2, 2, 4, 1), num_blocks=3, latent_channels=4, codebook_size=7),
  'discriminator': PatchGAN(dim=2, num_layers=4),
}


def _random(system):
  shapes = jax.eval_shape(MODULES[system].init, jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32))
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), shapes)


@pytest.mark.parametrize('system', MODULES)
def test_round_trip_recovers_module_and_variables(system):
  variables = _random(system)
  back, restored = CONVERSIONS[system].from_reference(CONVERSIONS[system].to_reference(variables))
  assert back == MODULES[system]
  jax.tree.map(np.testing.assert_array_equal, restored, variables)


@pytest.mark.parametrize(('system', 'case'), [('vqgan', 'vq_small'), ('discriminator', 'vq_losses')])
def test_public_names_are_given_back_all(system, case):
  _, state, _ = load(f'vqgan/{case}')
  back = CONVERSIONS[system].to_reference(CONVERSIONS[system].from_reference(state)[1])
  assert back.keys() == state.keys()
  for name, tensor in state.items():
    np.testing.assert_array_equal(back[name], tensor, err_msg=name)
    assert back[name].dtype == tensor.dtype


def test_both_are_found_in_what_a_training_saves_and_in_latent_diffusion():
  _, first_stage, _ = load('vqgan/vq_small')
  _, judge, _ = load('vqgan/vq_losses')
  training = {
    **first_stage,
    **{f'loss.discriminator.{name}': tensor for name, tensor in judge.items()},
    'loss.perceptual_loss.lin0.model.1.weight': np.zeros((1, 64, 1, 1), np.float32),
  }
  prefixed = {f'first_stage_model.{name}': tensor for name, tensor in first_stage.items()}
  expected = vqgan.from_reference(first_stage)
  for state in (training, prefixed):
    module, variables = vqgan.from_reference(state)
    assert module == expected[0]
    jax.tree.map(np.testing.assert_array_equal, variables, expected[1])
  module, variables = vqgan.discriminator.from_reference(training)
  assert module == PatchGAN(8, 2)
  jax.tree.map(np.testing.assert_array_equal, variables, vqgan.discriminator.from_reference(judge)[1])


def test_misfits_are_listed_in_one_error():
  _, state, _ = load('vqgan/vq_small')
  del state['quant_conv.bias']
  state['decoder.extra'] = np.zeros(2)
  state['encoder.conv_out.bias'] = np.zeros(4)
  with pytest.raises(
    UserError, match='no vqgan checkpoint: 1 missing: quant_conv.bias; 1 unexpected: decoder.extra; 1 missha'
  ) as e:
    vqgan.from_reference(state)
  assert 'encoder.conv_out.bias (4,) instead of (3,)' in str(e.value)
  for conversion in CONVERSIONS.values():
    with pytest.raises(UserError, match='checkpoint: .* missing'):
      conversion.from_reference({})
