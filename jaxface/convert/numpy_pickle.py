"""Reads pickled dictionaries of numpy arrays, of Python 2 or 3, as public code publishes weights: .pkl files.

Nothing in the file is run, and numpy is not asked to rebuild its arrays either: their parts (type of number, shape,
bytes) are noted while unpickling, and put together afterwards.
"""

import io
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxface.convert.plain_pickle import BROKEN, PlainUnpickler
from jaxface.errors import UserError

_WAY_OUT = 'only dictionaries of plain arrays are read: save them by numpy.savez'
# Booleans, integers, floats and complex numbers.
_NUMBERS = re.compile(r'[<>=|]?[biufc]\d{1,2}')


class _Dtype:
  """A numpy dtype as a pickle describes it."""

  def __init__(self, text: str, *_: Any):
    if not _NUMBERS.fullmatch(str(text)):
      raise ValueError(f'an array of {str(text)[:40]!r}')
    self._dtype = np.dtype(str(text))

  def __setstate__(self, state: tuple) -> None:
    """(version, byte order, parts of structured types, ...): the byte order counts, structures are refused."""
    if any(part is not None for part in state[2:5]):
      raise ValueError('an array of records')
    self._dtype = self._dtype.newbyteorder(state[1])

  def plain(self) -> np.dtype:
    return self._dtype


class _Array:
  """A numpy array as a pickle describes it; `made` is the array once all is known."""

  made: np.ndarray | None = None

  def __setstate__(self, state: tuple) -> None:
    """(version, shape, dtype, whether columns come first, bytes), in the oldest files without version."""
    shape, dtype, fortran, data = state[-4:]
    # Python 2's bytes arrive as text.
    data = data.encode('latin1') if isinstance(data, str) else data
    self.made = _array(data, dtype, shape, 'F' if fortran else 'C')


class _Known:
  """What a pickle of arrays names, as bound methods."""

  def reconstruct(self, kind: Any, shape: Any, code: Any) -> _Array:
    """numpy's `_reconstruct`: an array to be filled."""
    del kind, shape, code
    return _Array()

  def from_buffer(self, data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> _Array:
    """numpy's `_frombuffer`, of pickles of protocol 5; `axes` says in which order the bytes run through them."""
    array = _Array()
    array.made = _array(data, dtype, shape, 'C' if axes is not None else order)
    if axes is not None:
      array.made = array.made.transpose(axes)
    return array

  def no_bytes(self) -> bytes:
    """`bytes`, which Python 3 calls for none in old protocols."""
    return b''

  def encode(self, text: str, encoding: str = 'latin1') -> bytes:
    """`codecs.encode`, by which Python 3 writes bytes in old protocols."""
    if encoding != 'latin1':
      raise ValueError(f'bytes in encoding {encoding!r}')
    return str.encode(text, 'latin1')


def _array(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
  if not isinstance(dtype, _Dtype) or not isinstance(data, bytes | bytearray):
    raise ValueError('an array that is not plain numbers')
  numbers = np.frombuffer(data, dtype.plain())
  numbers.flags.writeable = False
  return numbers.reshape(tuple(shape), order=order)


def _names() -> dict[tuple[str, str], Any]:
  known = _Known()
  names = {
    ('numpy', 'ndarray'): type('ndarray', (), {}),
    ('numpy', 'dtype'): _Dtype,
    ('_codecs', 'encode'): known.encode,
    ('__builtin__', 'bytes'): known.no_bytes,
  }
  # numpy 2 has moved its inner parts.
  for package in ('numpy.core', 'numpy._core'):
    names[f'{package}.multiarray', '_reconstruct'] = known.reconstruct
    names[f'{package}.numeric', '_frombuffer'] = known.from_buffer
  return names


def is_pickle(path: str | os.PathLike[str]) -> bool:
  """Whether a file may be for `read`: not a format that `torch_file.read` knows; False where there is no file."""
  if not os.path.isfile(path):
    return False
  with open(path, 'rb') as file:
    start = file.read(9)
  # A protocol's mark, or in the oldest one the beginning of a dictionary; PyTorch's old files begin with a number.
  return (start[:1] == b'\x80' and start[2:4] != b'\x8a\x0a') or start[:2] in (b'(d', b'}q')


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """The arrays of a pickled dictionary {name: array}, read-only, in their own dtype; other values are left out.

  Raises:
    UserError: there is no such file, it is no such pickle or damaged, or it would call code (the message names it).
  """
  path = os.fspath(path)
  try:
    with open(path, 'rb') as file:
      stream = io.BytesIO(file.read())
  except OSError as error:
    raise UserError(f'{path}: {error.strerror}; expected a pickled dictionary of numpy arrays') from error
  try:
    tree = PlainUnpickler(path, stream, _names(), encoding='latin1', way_out=_WAY_OUT).load()
  except UserError:
    raise
  except BROKEN as error:
    raise UserError(
      f'{path} is damaged, incomplete or no pickle of plain arrays ({type(error).__name__}: '
      f'{" ".join(str(error).split())[:120]}); copy or download it again'
    ) from error
  arrays = {}
  for name, array in tree.items() if isinstance(tree, Mapping) else ():
    if isinstance(array, _Array) and array.made is not None:
      arrays[str(name)] = array.made
  if not arrays:
    raise UserError(f'{path} holds a pickled {type(tree).__name__} without arrays; expected a dictionary of them')
  return arrays
