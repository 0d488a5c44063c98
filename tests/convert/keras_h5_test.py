"""Files in Keras 2's HDF5 layout, written here with h5py."""

import h5py
import jax
import numpy as np
import pytest

from jaxface import convert
from jaxface.convert import keras_h5
from jaxface.errors import UserError
from jaxface.models.vae import FaceMaskVAE, stage_widths


def write_keras(group, state, *, chunked=False):
  """Writes {'layer.weight': array} as Keras 2 does, layers without weights included."""
  layers = {}
  for name, array in state.items():
    layer, weight = name.split('.')
    layers.setdefault(layer, {})[f'{layer}/{weight}:0'] = array
  names = [b'input_1', *(layer.encode() for layer in layers)]
  if chunked:
    group.attrs['layer_names0'], group.attrs['layer_names1'] = names[:2], names[2:]
  else:
    group.attrs['layer_names'] = names
  group.create_group('input_1').attrs['weight_names'] = []
  for layer, weights in layers.items():
    written = group.create_group(layer)
    written.attrs['weight_names'] = [name.encode() for name in weights]
    for name, array in weights.items():
      written[name] = array


STATE = {'conv2d.kernel': np.arange(12.0).reshape(2, 6), 'conv2d.bias': np.ones(6), 'z_mean.bias': np.zeros(3)}


def assert_same(actual, expected):
  assert actual.keys() == expected.keys()
  for name in expected:
    np.testing.assert_array_equal(actual[name], expected[name])


@pytest.mark.parametrize('chunked', [False, True])
def test_weight_files_and_whole_models_are_read(tmp_path, chunked):
  with h5py.File(tmp_path / 'weights.h5', 'w') as file:
    write_keras(file, STATE, chunked=chunked)
  with h5py.File(tmp_path / 'model.h5', 'w') as file:
    file.attrs['keras_version'] = '2.5.0'
    write_keras(file.create_group('model_weights'), STATE, chunked=chunked)
    file.create_group('optimizer_weights')['iteration:0'] = 3
  assert_same(keras_h5.read(tmp_path / 'weights.h5'), STATE)
  assert_same(keras_h5.read(tmp_path / 'model.h5'), STATE)


def test_a_nested_model_gives_its_layers_names(tmp_path):
  with h5py.File(tmp_path / 'weights.h5', 'w') as file:
    file.attrs['layer_names'] = ['model_1']
    file.create_group('model_1').attrs['weight_names'] = ['conv2d_3/kernel:0']
    file['model_1']['conv2d_3/kernel:0'] = np.ones(2)
  assert_same(keras_h5.read(tmp_path / 'weights.h5'), {'conv2d_3.kernel': np.ones(2)})


def test_a_vae_goes_through_a_file(tmp_path):
  module = FaceMaskVAE(16, *stage_widths(16, 1 / 16), latent_dim=32, sampling='reference')
  variables = jax.jit(module.init)(jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32))
  with h5py.File(tmp_path / 'vae.h5', 'w') as file:
    write_keras(file, convert.to_reference('vae', variables))
  restored_module, restored = convert.from_reference('vae', keras_h5.read(tmp_path / 'vae.h5'))
  assert restored_module == module
  jax.tree.map(np.testing.assert_array_equal, restored, dict(variables))


def _truncated(path):
  with h5py.File(path, 'w') as file:
    write_keras(file, {'conv2d.kernel': np.ones((64, 64))})
  path.write_bytes(path.read_bytes()[:-8192])


def _without_a_tensor(path):
  with h5py.File(path, 'w') as file:
    write_keras(file, STATE)
    del file['conv2d/conv2d/kernel:0']


def _keras_3(path):
  with h5py.File(path, 'w') as file:
    file['layers/conv2d/vars/0'] = np.ones(3)


def _unrelated(path):
  with h5py.File(path, 'w') as file:
    file['data'] = np.ones(3)


def _twice(path):
  with h5py.File(path, 'w') as file:
    file.attrs['layer_names'] = ['model_1', 'model_2']
    for model in file.attrs['layer_names']:
      file.create_group(model).attrs['weight_names'] = ['conv2d/kernel:0']
      file[model]['conv2d/kernel:0'] = np.ones(2)


@pytest.mark.parametrize(
  ('write', 'message'),
  [
    (lambda path: None, 'no such file'),
    (lambda path: path.write_bytes(b'PK\x03\x04 no HDF5'), 'not a complete HDF5 file'),
    (_truncated, 'not a complete HDF5 file'),
    (_without_a_tensor, r'not a complete HDF5 file.*kernel:0'),
    (_keras_3, 'Keras 3 weights.*with Keras 2'),
    (_unrelated, "no Keras weights, not Keras 2's"),
    (_twice, 'two tensors named conv2d.kernel'),
  ],
)
def test_bad_files_are_named_with_the_reason_in_one_line(tmp_path, write, message):
  path = tmp_path / 'weights.h5'
  write(path)
  with pytest.raises(UserError, match=message) as caught:
    keras_h5.read(path)
  assert str(path) in str(caught.value)
  assert '\n' not in str(caught.value)
