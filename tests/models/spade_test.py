"""SPADE against stored numbers of the public code, and its promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxface.convert import tensors
from jaxface.models.spade import Spade
from tests.golden import Initialised, load

LAYERS = {'shared': 'mlp_shared.0', 'gamma': 'mlp_gamma', 'beta': 'mlp_beta'}


def _normalise(module, x, mask):
  modulation = module.maps(mask, x.shape[1:3])
  return module(x, modulation), modulation


def test_it_matches_the_golden():
  about, state, arrays = load('scadm/spade_block')
  norm = {name: tensor for name, tensor in state.items() if name.startswith('in_norm.')}
  module = Spade(96)
  x, mask = arrays['x'].transpose(0, 2, 3, 1), np.eye(19, dtype=np.float32)[arrays['labels']]
  paths = tensors.layer_paths((f'in_norm.{theirs}', (ours,)) for ours, theirs in LAYERS.items())
  like = Initialised(nn.init(_normalise, module))
  variables = tensors.variables_from('spade', norm, like, paths, inputs=(x, mask))
  y, modulation = jax.jit(nn.apply(_normalise, module))(variables, x, mask)
  tolerance = about['tolerance']
  close = functools.partial(np.testing.assert_allclose, rtol=tolerance['relative'], atol=tolerance['absolute'] / 10)
  for ours, name in ((y, 'in_norm'), (modulation.gamma, 'gamma'), (modulation.beta, 'beta')):
    close(ours.transpose(0, 3, 1, 2), arrays[name], err_msg=name)


def test_one_modulation_serves_a_batch_and_half_precision_stays_close():
  rng = np.random.default_rng(0)
  x, mask = rng.standard_normal((3, 4, 6, 64), np.float32), rng.random((1, 8, 12, 5), np.float32)
  module = Spade(64, hidden=8)
  variables = jax.jit(nn.init(_normalise, module))(jax.random.key(0), x, mask)
  run = lambda module: jax.jit(nn.apply(_normalise, module))
  shared, modulation = run(module)(variables, x, mask)
  assert modulation.gamma.shape == (1, 4, 6, 64)
  own, _ = run(module)(variables, x, np.repeat(mask, 3, 0))
  np.testing.assert_allclose(shared, own, atol=1e-5)
  half, modulation = run(module.clone(dtype=jnp.bfloat16))(variables, x, mask)
  assert half.dtype == modulation.beta.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.float32(half), shared, atol=0.05)
