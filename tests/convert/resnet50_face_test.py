"""The face ResNet-50's checkpoint: read from the published kind of file, there and back, and what does not fit."""

import json
import pickle

import jax
import numpy as np
import pytest

from jaxface import weights
from jaxface.convert import from_reference, resnet50_face, to_reference
from jaxface.convert.command import convert
from jaxface.errors import UserError
from jaxface.models.resnet50_face import FaceResNet50, random_variables
from tests.golden import parameter


@pytest.fixture(scope='module')
def state():
  """A small network's checkpoint: two channels a block, one block a layer but the second."""
  module = FaceResNet50(widths=(2, 2, 2, 2), blocks=(1, 2, 1, 1))
  shapes = {name: array.shape for name, array in to_reference('resnet50_face', random_variables(0, module)).items()}
  return {name: parameter(name, shape, 0) for name, shape in shapes.items()}


def test_widths_and_blocks_are_read_off_the_checkpoint(state):
  counters = {
    'bn1.num_batches_tracked': np.zeros((), np.int64),
    'fc.weight': np.zeros((8631, 8)),
    'fc.bias': np.zeros(8),
  }
  module, variables = from_reference('resnet50_face', state | counters)
  assert module == FaceResNet50(widths=(2, 2, 2, 2), blocks=(1, 2, 1, 1))
  assert variables['params']['layer4_0_downsample']['kernel'].shape == (1, 1, 8, 8)
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}


def test_going_there_and_back_computes_the_same(state):
  _, variables = resnet50_face.from_reference(state)
  back = resnet50_face.to_reference(variables)
  assert back.keys() == state.keys()
  _, again = resnet50_face.from_reference(back)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), variables, again)


def test_what_does_not_fit_is_listed(state):
  broken = dict(state)
  del broken['layer3.0.bn2.running_var']
  broken['layer1.0.conv4.weight'] = np.zeros(1)
  broken['bn1.bias'] = np.zeros(3)
  lists = r'1 missing: layer3.0.bn2.running_var; 1 unexpected: layer1.0.conv4.weight; 1 misshapen: bn1.bias'
  with pytest.raises(UserError, match=lists):
    resnet50_face.from_reference(broken)
  with pytest.raises(UserError, match='these tensors are no resnet50_face checkpoint'):
    resnet50_face.from_reference({'a': np.zeros(2)})


def test_the_command_makes_of_the_pickle_what_weights_loads(state, tmp_path, monkeypatch, capsys):
  monkeypatch.setenv('JAXFACE_WEIGHTS', str(tmp_path))
  with pytest.raises(UserError, match='download resnet50_ft_weight.pkl .*`jaxface convert resnet50_face resnet50_ft'):
    weights.load('resnet50_face')
  path = tmp_path / 'resnet50_ft_weight.pkl'
  path.write_bytes(pickle.dumps(state | {'fc.bias': np.zeros(3)}, protocol=2))
  convert('resnet50_face', path, None, make_config=None)
  report = json.loads(capsys.readouterr().out)
  assert report['network'] == 'resnet50_face'
  network = weights.load('resnet50_face')
  assert network.module == FaceResNet50(pool='global', precision='highest')
  jax.tree.map(np.testing.assert_array_equal, network.variables, resnet50_face.from_reference(state)[1])
  np.savez(tmp_path / 'other.npz', **state)
  convert('resnet50_face', tmp_path / 'other.npz', None, make_config=None)
  path.write_bytes(path.read_bytes()[:-9])
  with pytest.raises(UserError, match='resnet50_ft_weight.pkl is damaged, incomplete'):
    convert('resnet50_face', path, None, make_config=None)
