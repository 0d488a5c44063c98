"""Initial values of the layers that follow PyTorch's; what they compute is held by the goldens of their networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.models.beautygan import SpectralConv
from jaxface.models.style_encoder import GroupedConv, Tokens
from jaxface.models.unet_layers import Conv, Linear

_X = jnp.ones((1, 4, 4, 12))
_MASK = jnp.ones((1, 4, 4, 3))

# Layer, what it is called with beside _X, and inputs of one of its outputs.
LAYERS = {
  'conv': (Conv(300), (), 9 * 12),
  'strided conv': (Conv(300, 5, stride=2), (), 25 * 12),
  'pointwise conv': (Conv(300, 1), (), 12),
  'linear': (Linear(300), (), 12),
  'grouped conv': (GroupedConv(300, groups=3), (), 9 * 4),
  'tokens': (Tokens(100), (_MASK,), 4),
  'spectral conv': (SpectralConv(300), (False,), 16 * 12),
}


@pytest.mark.parametrize('name', LAYERS)
def test_kernels_and_biases_fill_what_pytorch_draws_from(name):
  module, inputs, fan_in = LAYERS[name]
  params = module.init(jax.random.key(0), _X, *inputs)['params']
  limit = fan_in**-0.5
  assert params['bias'].shape == (300,)
  for leaf in params.values():
    assert np.abs(leaf).max() <= limit
    assert leaf.min() < -0.95 * limit
    assert leaf.max() > 0.95 * limit
    np.testing.assert_allclose(leaf.std(), limit / np.sqrt(3), rtol=0.1)
    # Of a mean of 300 numbers three standard deviations.
    assert abs(leaf.mean()) < 0.1 * limit


@pytest.mark.parametrize('module', [Conv(8, zero=True), Linear(8, zero=True)], ids=['conv', 'linear'])
def test_zero_modules_start_with_zeros(module):
  params = module.init(jax.random.key(0), _X)['params']
  assert params.keys() == {'kernel', 'bias'}
  assert not any(leaf.any() for leaf in params.values())
