"""The patch discriminator against stored numbers of its code, and in training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.convert import vqgan as convert
from jaxface.errors import UserError
from jaxface.models.patchgan import PatchGAN
from jaxface.state import count
from tests.golden import load


@pytest.fixture(scope='module')
def golden():
  about, state, arrays = load('vqgan/vq_losses')
  module, variables = convert.discriminator.from_reference(state)
  return about, arrays, module, variables


def test_logits_match_the_golden(golden):
  about, arrays, module, variables = golden
  assert (module.dim, module.num_layers) == (8, 2)
  logits = jax.jit(module.apply)(variables, arrays['x'].transpose(0, 2, 3, 1))
  tolerance = about['tolerance']
  np.testing.assert_allclose(
    logits[..., 0], arrays['logits_real'][:, 0], rtol=tolerance['relative'], atol=tolerance['absolute']
  )


def test_training_normalises_by_the_batch_and_moves_the_statistics_as_pytorch_does(golden):
  _, arrays, module, variables = golden
  image = jnp.asarray(arrays['x'].transpose(0, 2, 3, 1))
  train = jax.jit(functools.partial(module.apply, train=True, mutable=['batch_stats']))
  logits, moved = train(variables, image)
  # Other statistics to begin with change nothing but what they move from.
  fresh = jax.tree.map(jnp.zeros_like, variables['batch_stats'])
  again, from_zero = train({**variables, 'batch_stats': fresh}, image)
  np.testing.assert_allclose(logits, again, atol=1e-5)
  jax.tree.map(
    lambda new, old, part: np.testing.assert_allclose(new, 0.9 * old + part, atol=1e-5),
    moved['batch_stats'],
    variables['batch_stats'],
    from_zero['batch_stats'],
  )


def test_published_size_and_first_weights():
  picture = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
  logits, variables = jax.eval_shape(PatchGAN().init_with_output, jax.random.key(0), picture)
  assert logits.shape == (1, 30, 30, 1)
  assert count(variables['params']) == 2_765_633
  assert PatchGAN().least_side == 24
  params = jax.jit(PatchGAN(128, 1).init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))['params']
  np.testing.assert_allclose(np.std(params['conv1']['kernel']), 0.02, rtol=0.05)
  scale, bias = (params['norm1'][name] for name in ('scale', 'bias'))
  np.testing.assert_allclose((scale.mean(), scale.std()), (1, 0.02), rtol=0.15)
  assert not bias.any()
  # PyTorch's own: uniform within 1 / sqrt(fan in).
  np.testing.assert_allclose(np.abs(params['conv0']['bias']).max(), (16 * 3) ** -0.5, rtol=0.1)


def test_wrong_input_says_what_is_right():
  with pytest.raises(UserError, match=r'\(1, 20, 64, 3\).*at least 24'):
    jax.eval_shape(PatchGAN().init, jax.random.key(0), jnp.zeros((1, 20, 64, 3)))
  with pytest.raises(UserError, match='dim=0; it must be at least 1'):
    PatchGAN(dim=0)
