"""Files written by PyTorch 2.13 (tests/goldens/torch), read without it, and files that must be refused.

`legacy.pt`, saved without PyTorch's zip format, holds what `_expected` computes; `zip.pt` holds it as the 'state_dict'
of a training checkpoint, beside other tensors, one of them under a class as key. `nested.pt` is a model's and its
optimizer's state_dict(), a list of tensors, numbers and text; `module.pt` a whole `nn.Linear`.
"""

import io
import os
import pickle
import re
import struct
import sys
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jaxface.convert import torch_file
from jaxface.errors import UserError
from tests.convert.command_test import pretend_torch, save_torch

FILES = Path(__file__).parent.parent / 'goldens' / 'torch'


def _expected():
  grid = np.arange(24, dtype=np.float32).reshape(4, 6)
  tensors = {
    'weight': grid / 8,  # A parameter.
    'transposed': grid.T,
    'window': grid[1:3, 2:5],
    'scalar': np.array(7),
    'empty': np.zeros((0, 3), np.float32),
    'expanded': np.full((3, 2), 2.5, np.float32),
    'byte': np.arange(4, dtype=np.uint8),
    'bool': np.array([False, True]),
  }
  numbers = {'half': 'f2', 'bfloat16': ml_dtypes.bfloat16, 'double': 'f8', 'complex': 'c8'}
  numbers |= {'long': 'i8', 'int': 'i4', 'short': 'i2', 'char': 'i1'}
  return tensors | {name: np.arange(-2, 4).astype(dtype) for name, dtype in numbers.items()}


def _assert_same(actual, expected):
  assert actual.keys() == expected.keys()
  for name, array in expected.items():
    assert actual[name].dtype == array.dtype, name
    np.testing.assert_array_equal(actual[name], array, err_msg=name)


@pytest.mark.parametrize('file', ['zip.pt', 'legacy.pt'])
def test_both_formats_give_values_dtypes_and_views(file):
  _assert_same(torch_file.read(FILES / file), _expected())


def test_the_content_decides_not_the_name(tmp_path):
  tensors = {
    'a.weight': np.arange(6, dtype=np.float32).reshape(2, 3),
    'a.bias': np.arange(3).astype(ml_dtypes.bfloat16),
  }
  safetensors.numpy.save_file(tensors, tmp_path / 'weights.pth')
  _assert_same(torch_file.read(tmp_path / 'weights.pth'), tensors)
  del tensors['a.bias']  # bfloat16 is not NumPy's own.
  with open(tmp_path / 'weights.ckpt', 'wb') as file:
    np.savez(file, **tensors)
  _assert_same(torch_file.read(tmp_path / 'weights.ckpt'), tensors)


def test_nested_dictionaries_are_flattened_or_chosen_from():
  weight, bias = np.arange(6, dtype=np.float32).reshape(3, 2), np.arange(3, dtype=np.float32)
  flat = torch_file.read(FILES / 'nested.pt')
  momenta = {f'optimizer.state.{i}.momentum_buffer' for i in range(2)}
  assert flat.keys() == {'model.weight', 'model.bias', 'shadow.0', 'shadow.1'} | momenta
  for name in ('model.weight', 'shadow.0'):
    np.testing.assert_array_equal(flat[name], weight)
  _assert_same(torch_file.read(FILES / 'nested.pt', key='model'), {'weight': weight, 'bias': bias})
  with pytest.raises(UserError, match="no entry 'ema'; it has epoch, loss, note, model, optimizer, shadow and 1 more"):
    torch_file.read(FILES / 'nested.pt', key='ema')
  with pytest.raises(UserError, match="no tensors in entry 'note'"):
    torch_file.read(FILES / 'nested.pt', key='note')


class _Calls:
  """Pickles to a call of a function, as an attack does, or what it is given as a class's instance."""

  def __init__(self, function, *arguments):
    self._call = function, arguments

  def __reduce__(self):
    return self._call


def _zip(path, tree, **names):
  """A file in the layout of `torch.save`, with a pickle of `tree`."""
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('archive/data.pkl', pickle.dumps(tree, protocol=2))
    for name, data in names.items():
      archive.writestr(f'archive/data/{name}', data)


def _legacy(path, tree):
  parts = (0x1950A86A20F9469CFC6C, 1001, {'little_endian': True}, tree, [])
  path.write_bytes(b''.join(pickle.dumps(part, protocol=2) for part in parts))


def _plain(path, tree):
  path.write_bytes(pickle.dumps(tree))


@pytest.mark.parametrize('write', [_zip, _legacy, _plain])
def test_a_pickle_with_code_is_refused_by_the_name_of_the_code_which_does_not_run(tmp_path, write):
  path, made = tmp_path / 'weights.pth', tmp_path / 'made'
  write(path, {'state_dict': {'weight': _Calls(os.mkdir, str(made))}})
  with pytest.raises(UserError, match=r'is a pickle that would run (posix|nt)\.mkdir; only files of plain') as caught:
    torch_file.read(path)
  assert '\n' not in str(caught.value)
  assert not made.exists()
  pickle.loads(pickle.dumps(_Calls(os.mkdir, str(made))))
  assert made.exists(), 'the attack is none'


@pytest.mark.parametrize('tree', [{'a': pickle.PickleBuffer}, {'a': Path('x')}])
def test_a_mere_name_is_let_pass_and_an_instance_is_not(tmp_path, tree):
  _zip(tmp_path / 'x.pth', tree)
  named = tree['a'] is pickle.PickleBuffer
  with pytest.raises(UserError, match='holds no tensors' if named else r'would run pathlib\.(_local\.)?PosixPath'):
    torch_file.read(tmp_path / 'x.pth')


def test_a_whole_model_is_refused_with_the_way_out():
  with pytest.raises(UserError, match=r'would run torch\.nn\.modules\.linear\.Linear; .*save model\.state_dict'):
    torch_file.read(FILES / 'module.pt')


def _npz(**arrays):
  stream = io.BytesIO()
  np.savez(stream, **arrays)
  return stream.getvalue()


@pytest.mark.parametrize('file', ['zip.pt', 'legacy.pt'])
def test_cut_off_anywhere_a_file_is_refused(tmp_path, file):
  whole, path = (FILES / file).read_bytes(), tmp_path / 'cut.pt'
  for size in (*range(0, len(whole), 97), len(whole) - 1):
    path.write_bytes(whole[:size])
    with pytest.raises(UserError, match='damaged or incomplete|no weights of a known format') as caught:
      torch_file.read(path)
    assert '\n' not in str(caught.value)


def test_a_tensor_beyond_its_storage_is_refused(tmp_path):
  with zipfile.ZipFile(FILES / 'zip.pt') as whole, zipfile.ZipFile(tmp_path / 'short.pt', 'w') as short:
    for name in whole.namelist():
      data = whole.read(name)
      short.writestr(name, data[:-4] if re.search(r'/data/\d+$', name) else data)
  with pytest.raises(UserError, match='damaged or incomplete .*reaches beyond its 23 stored numbers'):
    torch_file.read(tmp_path / 'short.pt')


def test_a_damaged_number_does_not_claim_the_memory(tmp_path):
  # "Remember this as number 2^32 - 1", at which the unpickler would make room for as many.
  path = tmp_path / 'weights.pth'
  path.write_bytes(b'\x80\x02}r\xff\xff\xff\xff.')
  with pytest.raises(UserError, match='damaged or incomplete .*LONG_BINPUT'):
    torch_file.read(path)


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'', 'no weights of a known format'),
    (b'<html>404</html>', 'no weights of a known format'),
    (b'\x89HDF\r\n\x1a\n', 'no weights of a known format'),
    (b'\x10\x00\x00\x00\x00\x00\x00\x00{"weight": 1}', 'damaged or incomplete'),
    (b'PK\x03\x04 no zip', 'damaged or incomplete'),
    (_npz(a=np.array([{}], object)), r'damaged or incomplete \(ValueError: Object arrays'),
    (pickle.dumps([1, 2]), 'no weights of a known format'),
  ],
)
def test_foreign_files_are_refused(tmp_path, content, message):
  path = tmp_path / 'weights.pth'
  path.write_bytes(content)
  with pytest.raises(UserError, match=message) as caught:
    torch_file.read(path)
  assert str(path) in str(caught.value)
  assert '\n' not in str(caught.value)


def test_a_missing_file_says_what_was_expected(tmp_path):
  with pytest.raises(UserError, match=r'no such file; expected weights as \.pth'):
    torch_file.read(tmp_path / 'none.pth')


def test_files_of_machines_that_put_the_large_end_first(tmp_path):
  tensors = {'a.weight': np.arange(6, dtype=np.float32).reshape(2, 3) / 7}
  save_torch(tmp_path / 'small.pt', tensors)
  with zipfile.ZipFile(tmp_path / 'small.pt') as small, zipfile.ZipFile(tmp_path / 'large.pt', 'w') as large:
    for name in small.namelist():
      data = small.read(name)
      large.writestr(name, np.frombuffer(data, '<f4').astype('>f4').tobytes() if '/data/' in name else data)
    large.writestr('archive/byteorder', b'big')
  _assert_same(torch_file.read(tmp_path / 'large.pt'), tensors)


def test_storages_of_the_oldest_files_may_be_windows_of_others(tmp_path):
  whole = np.arange(10, dtype=np.float32)
  with pretend_torch() as torch, open(tmp_path / 'old.pt', 'wb') as file:

    class Pickler(pickle.Pickler):
      def persistent_id(self, value):
        # Type, key, device and length of the storage, and of it six numbers from the fourth on.
        return ('storage', torch.FloatStorage, '0', 'cpu', 10, ('1', 4, 6)) if value is whole else None

      def reducer_override(self, value):
        rebuild = sys.modules['torch._utils']._rebuild_tensor_v2
        return (rebuild, (whole, 1, (2,), (2,), False, {})) if value == slice(1) else NotImplemented

    for part in (0x1950A86A20F9469CFC6C, 1001, {'little_endian': True}):
      pickle.dump(part, file, protocol=2)
    Pickler(file, protocol=2).dump({'x': slice(1)})
    pickle.dump(['0'], file, protocol=2)
    file.write(struct.pack('<q', 10) + whole.tobytes())
  np.testing.assert_array_equal(torch_file.read(tmp_path / 'old.pt')['x'], whole[[5, 7]])
