"""LPIPS's and torchvision's tensors, there and back."""

import jax
import numpy as np
import pytest

from jaxface.convert import lpips
from jaxface.convert.torchvision import from_torchvision, to_torchvision
from jaxface.errors import UserError
from jaxface.metrics.lpips import CHANNELS, NETS
from jaxface.models.vgg import VGG19, Vgg
from tests.golden import load


def _state(net='alex'):
  linear = {f'lin{tap}.model.1.weight': np.ones((1, c, 1, 1), np.float32) for tap, c in enumerate(CHANNELS[net])}
  return load(f'lpips/{net}_64')[1] | linear


@pytest.mark.parametrize('net', NETS)
def test_round_trip(net):
  state = _state(net)
  module, variables = lpips.from_reference(state | {'classifier.6.bias': np.zeros(1000)})
  assert module.net == net
  back = lpips.to_reference(variables)
  assert set(back) == set(state)
  for name, tensor in state.items():
    np.testing.assert_array_equal(back[name], tensor)


def test_what_does_not_fit_is_listed():
  state = _state()
  for wrong, message in (
    ({'lin2.model.1.weight': np.ones((1, 3, 1, 1))}, r'channels \(64, 192, 3, 256, 256\)'),
    (
      {'features.3.weight': np.ones((192, 64, 3, 3))},
      r'features.3.weight \(192, 64, 3, 3\) instead of \(192, 64, 5, 5\)',
    ),
    ({'features.1.weight': np.ones(3)}, '1 unexpected: features.1.weight'),
  ):
    with pytest.raises(UserError, match=message):
      lpips.from_reference(state | wrong)
  with pytest.raises(UserError, match=r'missing: lin5'):
    lpips.from_reference(state, net='squeeze')
  del state['features.10.bias']
  with pytest.raises(UserError, match='1 missing: features.10.bias'):
    lpips.from_reference(state)


def test_torchvision_numbers_of_vgg_19():
  module = Vgg(('relu3_4', 'relu4_1'), VGG19, widths=(2, 2, 2, 2, 2))
  shapes = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32))
  rng = np.random.default_rng(0)
  variables = jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), shapes)
  state = to_torchvision(module, variables)
  numbers = sorted(int(name.split('.')[1]) for name in state if name.endswith('bias'))
  # torchvision's vgg19: relu3_4 is layer 17, and conv4_1 layer 19.
  assert numbers == [0, 2, 5, 7, 10, 12, 14, 16, 19]
  whole = state | {'features.21.weight': np.zeros((2, 2, 3, 3)), 'classifier.0.bias': np.zeros(3)}
  jax.tree.map(np.testing.assert_array_equal, from_torchvision(module, whole), variables)
