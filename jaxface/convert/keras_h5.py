"""Reads Keras 2's HDF5 files, of weights (`save_weights('x.h5')`) or of a whole model (`save('x.h5')`), without Keras.

Layout: the group with the weights has an attribute `layer_names`; each layer's group has `weight_names`, such as
'conv2d/kernel:0', which are the paths of its datasets. Attributes above 64 kB are split: `weight_names0`, ...1, ...
"""

import os

import h5py
import numpy as np

from jaxface.errors import UserError


def _names(group: h5py.Group, attribute: str) -> list[str]:
  if attribute in group.attrs:
    chunks = [attribute]
  else:
    chunks = []
    while f'{attribute}{len(chunks)}' in group.attrs:
      chunks.append(f'{attribute}{len(chunks)}')
  names = [name for chunk in chunks for name in group.attrs[chunk]]
  return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def _tensor_name(layer: str, weight: str) -> str:
  """'conv2d' and 'conv2d/kernel:0' -> 'conv2d.kernel'. The weight's own layer counts: models may be nested."""
  *scopes, kind = weight.partition(':')[0].split('/')
  return f'{scopes[-1] if scopes else layer}.{kind}'


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """All weights of a file, `{'<layer>.<weight>': array}`, such as 'conv2d_3.kernel' or 'z_mean.bias'.

  Raises:
    UserError: there is no such file, it is not HDF5 or incomplete, or is not in Keras 2's layout.
  """
  path = os.fspath(path)
  if not os.path.isfile(path):
    raise UserError(f'{path}: no such file; expected Keras 2 weights (.h5)')
  try:
    with h5py.File(path, 'r') as file:
      return _read(path, file)
  except (OSError, KeyError) as error:
    raise UserError(
      f'{path} is not a complete HDF5 file of Keras weights ({" ".join(str(error).split())}); copy or download it again'
    ) from error


def _read(path: str, file: h5py.File) -> dict[str, np.ndarray]:
  root = file.get('model_weights', file)
  layers = _names(root, 'layer_names')
  if not layers:
    kind = 'Keras 3 weights' if {'layers', '_layer_checkpoint_dependencies'} & set(file) else 'no Keras weights'
    raise UserError(
      f"{path} holds {kind}, not Keras 2's; save the model as model.save_weights('weights.h5') with Keras 2 (tf_keras)"
    )
  tensors = {}
  for layer in layers:
    for weight in _names(root[layer], 'weight_names'):
      name = _tensor_name(layer, weight)
      if name in tensors:
        raise UserError(f'{path} has two tensors named {name}; save each model to a file of its own')
      tensors[name] = root[layer][weight][()]
  return tensors
