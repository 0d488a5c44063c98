"""Pickled dictionaries of arrays, of Python 2 and 3, are read; whatever else a pickle would do is refused."""

import contextlib
import io
import os
import pickle
import struct

import numpy as np
import pytest

from jaxface.convert import numpy_pickle, torch_file
from jaxface.errors import UserError


def arrays():
  grid = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
  return {
    'conv1.weight': grid / 8,
    'columns first': np.asfortranarray(grid[0]),
    'turned': grid.transpose(2, 0, 1),
    'big end': grid.astype('>f4'),
    'double': grid[0].astype('f8'),
    'half': grid[0].astype('f2'),
    'long': np.arange(-3, 3),
    'byte': np.arange(250, 256).astype('u1'),
    'bool': np.array([True, False]),
    'scalar': np.array(7.5),
    'empty': np.zeros((0, 3), 'f4'),
  }


def python2(tensors):
  """What Python 2 writes by protocol 2: names and contents are byte strings, numpy's parts are where they were."""
  out = io.BytesIO(b'\x80\x02}(')
  out.seek(0, io.SEEK_END)

  def short(text):
    out.write(b'U' + bytes([len(text)]) + text)

  for name, array in tensors.items():
    short(name.encode())
    out.write(b'cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85')
    short(b'b')
    out.write(b'\x87R(K\x01(' + b''.join(b'M' + struct.pack('<H', side) for side in array.shape) + b'tcnumpy\ndtype\n')
    short(array.dtype.str[1:].encode())
    out.write(b'K\x00K\x01\x87R(K\x03')
    short(array.dtype.str[:1].encode())
    out.write(b'NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89')
    data = array.tobytes()
    out.write(b'T' + struct.pack('<i', len(data)) + data + b'tb')
  out.write(b'u.')
  return out.getvalue()


def assert_same(actual, expected):
  assert actual.keys() == expected.keys()
  for name, array in expected.items():
    assert actual[name].shape == array.shape, name
    # numpy itself turns Python 2's bytes round to the machine's order; here they stay as they are.
    assert actual[name].dtype.newbyteorder('=') == array.dtype.newbyteorder('='), name
    np.testing.assert_array_equal(actual[name], array, err_msg=name)


def test_python_2(tmp_path):
  tensors = {name: np.ascontiguousarray(array) for name, array in arrays().items()}
  path = tmp_path / 'weights.pkl'
  path.write_bytes(python2(tensors))
  assert_same(pickle.loads(path.read_bytes(), encoding='latin1'), tensors)
  assert numpy_pickle.is_pickle(path)
  assert_same(numpy_pickle.read(path), tensors)


@pytest.mark.parametrize('protocol', range(6))
def test_python_3(tmp_path, protocol):
  path = tmp_path / 'weights.pkl'
  data = pickle.dumps(arrays() | {'epoch': 3, 'note': 'ä'}, protocol=protocol)
  path.write_bytes(data)
  assert numpy_pickle.is_pickle(path)
  assert_same(numpy_pickle.read(path), arrays())
  assert not any(array.flags.writeable for array in numpy_pickle.read(path).values())
  if protocol < 4:  # Later ones count the letters of a name.
    path.write_bytes(data.replace(b'numpy._core.', b'numpy.core.'))
    assert path.read_bytes() != data
    assert_same(numpy_pickle.read(path), arrays())


def test_other_formats_are_told_apart(tmp_path):
  torch = torch_file.__file__.replace('jaxface/convert/torch_file.py', 'tests/goldens/torch')
  for path in (f'{torch}/zip.pt', f'{torch}/legacy.pt', __file__, tmp_path / 'none.pkl'):
    assert not numpy_pickle.is_pickle(path)
  np.savez(tmp_path / 'a.npz', a=np.zeros(3))
  assert not numpy_pickle.is_pickle(tmp_path / 'a.npz')


class Calls:
  def __init__(self, function, *arguments):
    self._call = function, arguments

  def __reduce__(self):
    return self._call


@pytest.mark.parametrize('protocol', range(6))
def test_code_is_refused_by_its_name_and_does_not_run(tmp_path, protocol):
  path, made = tmp_path / 'weights.pkl', tmp_path / 'made'
  path.write_bytes(pickle.dumps(arrays() | {'a': Calls(os.mkdir, str(made))}, protocol=protocol))
  with pytest.raises(UserError, match=r'would run (posix|nt)\.mkdir; only dictionaries of plain arrays') as caught:
    numpy_pickle.read(path)
  assert '\n' not in str(caught.value)
  assert not made.exists()


def test_the_name_of_code_is_one_line(tmp_path):
  path = tmp_path / 'weights.pkl'
  path.write_bytes(b'\x80\x04\x8c\x02os\x8c\x07sys\ntem\x93)R.')
  with pytest.raises(UserError, match=r'would run os\.sys\?tem; only'):
    numpy_pickle.read(path)


@pytest.mark.parametrize(('tree', 'why'), [
  ({'a': np.array([{}, []], object)}, "an array of 'O8'"),
  ({'a': np.zeros(2, 'f4,i4')}, "an array of 'V8'"),
  ({'a': np.array(['2020'], 'M8[D]')}, "an array of 'M8'"),
  ({'a': np.ma.masked_array([1.0], [True])}, r'would run numpy\.ma\.\w+\._mareconstruct'),
  ({'a': np.float32(1)}, r'would run numpy\._?core\.multiarray\.scalar'),
  ({'a': 1}, 'holds a pickled dict without arrays'),
  ([np.zeros(2)], 'holds a pickled list without arrays'),
])  # fmt: skip
def test_what_is_no_dictionary_of_plain_arrays_is_refused(tmp_path, tree, why):
  path = tmp_path / 'weights.pkl'
  path.write_bytes(pickle.dumps(tree, protocol=2))
  with pytest.raises(UserError, match=why) as caught:
    numpy_pickle.read(path)
  assert str(path) in str(caught.value)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('whole', [python2({'a': np.arange(6.0)}), pickle.dumps(arrays()), pickle.dumps(arrays(), 0)])
def test_cut_off_anywhere_a_file_is_refused(tmp_path, whole):
  path = tmp_path / 'weights.pkl'
  for size in (*range(0, len(whole), 23), len(whole) - 1):
    path.write_bytes(whole[:size])
    with pytest.raises(UserError, match='damaged, incomplete or no pickle') as caught:
      numpy_pickle.read(path)
    assert '\n' not in str(caught.value)


def test_any_damaged_byte_gives_arrays_or_a_user_error(tmp_path):
  whole, path = python2({'a': np.arange(2.0)}), tmp_path / 'weights.pkl'
  for i in range(len(whole)):
    for byte in (0, 0x62, 0xFF):
      path.write_bytes(whole[:i] + bytes([byte]) + whole[i + 1 :])
      with contextlib.suppress(UserError):
        assert all(isinstance(array, np.ndarray) for array in numpy_pickle.read(path).values())


def test_damaged_lengths_do_not_claim_the_memory(tmp_path):
  path = tmp_path / 'weights.pkl'
  for start in (
    b'\x80\x02}r\xff\xff\xff\xff',
    b'\x80\x05\x96' + b'\xff' * 5 + b'\0' * 3,
    b'\x80\x04\x8e' + b'\xff' * 8,
  ):
    path.write_bytes(start + b'.')
    with pytest.raises(UserError, match='damaged'):
      numpy_pickle.read(path)


def test_a_shape_that_is_not_that_of_its_numbers_is_refused(tmp_path):
  path = tmp_path / 'weights.pkl'
  for sides in ((3,), (2**16 - 1, 2**16 - 1)):
    whole = python2({'a': np.arange(2.0)})
    shape = b''.join(b'M' + struct.pack('<H', side) for side in sides)
    path.write_bytes(whole.replace(b'M\x02\x00', shape))
    with pytest.raises(UserError, match='cannot reshape array of size 2'):
      numpy_pickle.read(path)


def test_a_missing_file(tmp_path):
  with pytest.raises(UserError, match='No such file or directory; expected a pickled dictionary of numpy arrays'):
    numpy_pickle.read(tmp_path / 'none.pkl')
