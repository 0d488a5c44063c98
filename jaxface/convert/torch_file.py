"""Reads files of weights as PyTorch code publishes them, without PyTorch: .pth, .pt, .ckpt, .safetensors and .npz.

PyTorch's own files are pickles, which can run any program. Here a pickle may only build tensors and plain containers: a
class or function that it merely names stays a name, and the first attempt to call another one refuses the file.
Tensors are noted while unpickling and read afterwards, so what is not asked for (an optimizer's state) is not read.
"""

import collections
import io
import os
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from jaxface.convert.plain_pickle import BROKEN, PlainUnpickler
from jaxface.errors import UserError, some

Tensors = dict[str, np.ndarray]

_STORAGES = {
  'DoubleStorage': 'f8', 'FloatStorage': 'f4', 'HalfStorage': 'f2', 'BFloat16Storage': ml_dtypes.bfloat16,
  'LongStorage': 'i8', 'IntStorage': 'i4', 'ShortStorage': 'i2', 'CharStorage': 'i1', 'ByteStorage': 'u1',
  'BoolStorage': '?', 'ComplexFloatStorage': 'c8', 'ComplexDoubleStorage': 'c16',
}  # fmt: skip

# How PyTorch before 1.6 begins a file: its magic number, pickled.
_LEGACY_START = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)

_BROKEN = (*BROKEN, zipfile.BadZipFile, zlib.error, safetensors.SafetensorError)

_WAY_OUT = 'only files of plain tensors are read: in PyTorch, save model.state_dict(), or the tensors as .safetensors'


class _StorageType(NamedTuple):
  dtype: Any


class _Storage(NamedTuple):
  """A run of numbers somewhere in the file."""

  dtype: np.dtype
  key: str
  start: int  # In elements: old files have storages that are windows of others.


class _Tensor(NamedTuple):
  """A view of a storage, as the pickle describes it."""

  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]  # In elements.


def read(path: str | os.PathLike[str], *, key: str | None = None) -> Tensors:
  """All tensors of a file, `{name: array}`; arrays are read-only and keep their dtype (bfloat16 as `ml_dtypes` has it).

  Dictionaries in dictionaries (and lists) are flattened: {'a': {'conv.weight': t}} gives 'a.conv.weight'. Where the
  file has an entry 'state_dict', that one alone is taken; `key` names another one. Numbers, texts and the like are left
  out. The format is told by the content, not by the name.

  Raises:
    UserError: there is no such file, it is none of these formats or incomplete, it would call code (the message names
      it), or it holds no tensors under `key`.
  """
  path = os.fspath(path)
  if not os.path.isfile(path):
    raise UserError(f'{path}: no such file; expected weights as .pth, .pt, .ckpt, .safetensors or .npz')
  with open(path, 'rb') as file:
    start = file.read(max(len(_LEGACY_START), 9))
  try:
    if start.startswith(b'PK\x03\x04'):
      with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        pickles = [name for name in names if re.fullmatch(r'([^/]+/)?data\.pkl', name)]
        if pickles:
          return _read_zip(path, archive, pickles[0].removesuffix('data.pkl'), key)
      if names and all(name.endswith('.npy') for name in names):
        return _read_npz(path, key)
    elif start.startswith(_LEGACY_START):
      return _read_legacy(path, key)
    elif start[8:9] == b'{':
      return _selected(path, safetensors.numpy.load_file(path), key)
    elif start.startswith(b'\x80'):
      with open(path, 'rb') as file:
        _Unpickler(path, io.BytesIO(file.read())).load()  # Says what it would run, if anything.
  except UserError:
    raise
  except _BROKEN as error:
    raise UserError(
      f'{path} is damaged or incomplete ({type(error).__name__}: {" ".join(str(error).split())[:120]}); '
      'copy or download it again'
    ) from error
  raise UserError(
    f'{path} holds no weights of a known format; expected a file of torch.save, a .safetensors or an .npz'
  )


def _read_npz(path: str, key: str | None) -> Tensors:
  with np.load(path, allow_pickle=False) as arrays:
    return _selected(path, dict(arrays), key)


def _read_zip(path: str, archive: zipfile.ZipFile, prefix: str, key: str | None) -> Tensors:
  """PyTorch 1.6 and later: a zip of data.pkl and one file a storage."""
  tree = _Unpickler(path, io.BytesIO(archive.read(f'{prefix}data.pkl'))).load()
  big = f'{prefix}byteorder' in archive.namelist() and archive.read(f'{prefix}byteorder') == b'big'
  data: dict[str, bytes] = {}

  def fetch(storage: _Storage) -> np.ndarray:
    if storage.key not in data:
      data[storage.key] = archive.read(f'{prefix}data/{storage.key}')
    return _numbers(data[storage.key], storage.dtype, big)

  return {name: _array(tensor, fetch) for name, tensor in _selected(path, tree, key).items()}


def _read_legacy(path: str, key: str | None) -> Tensors:
  """PyTorch before 1.6: five pickles (magic number, version, machine, tree, storages' order), then the storages."""
  with open(path, 'rb') as file:
    content = file.read()
  stream = io.BytesIO(content)
  _, version, machine = (_Unpickler(path, stream).load() for _ in range(3))
  if version != 1001:
    raise UserError(f'{path} is a PyTorch file of version {version}; known is 1001; save it again with a newer PyTorch')
  big = not machine['little_endian']
  unpickler = _Unpickler(path, stream)
  tree = unpickler.load()
  order = _Unpickler(path, stream).load()
  found: dict[str, tuple[int, int]] = {}
  position = stream.tell()
  for name in order:
    (count,) = struct.unpack_from('>q' if big else '<q', content, position)
    begin = position + 8
    position = begin + count * unpickler.storages[name].itemsize
    if count < 0 or position > len(content):
      raise EOFError(f'storage {name} ends at byte {position} of {len(content)}')
    found[name] = (begin, position)
  view = memoryview(content)

  def fetch(storage: _Storage) -> np.ndarray:
    begin, end = found[storage.key]
    return _numbers(view[begin:end], storage.dtype, big)[storage.start :]

  return {name: _array(tensor, fetch) for name, tensor in _selected(path, tree, key).items()}


def _numbers(data: bytes | memoryview, dtype: np.dtype, big: bool) -> np.ndarray:
  numbers = np.frombuffer(data, dtype)
  return numbers.byteswap() if big else numbers


def _array(tensor: _Tensor, fetch: Callable[[_Storage], np.ndarray]) -> np.ndarray:
  numbers = fetch(tensor.storage)
  if 0 in tensor.shape:
    return np.zeros(tensor.shape, numbers.dtype)
  steps = [*tensor.shape, *tensor.strides, tensor.offset]
  if len(tensor.shape) != len(tensor.strides) or any(not isinstance(n, int) or n < 0 for n in steps):
    raise ValueError(f'a tensor of shape {tensor.shape} and strides {tensor.strides}')
  last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
  if last >= numbers.size:
    raise EOFError(f'a tensor of shape {tensor.shape} reaches beyond its {numbers.size} stored numbers')
  strides = [step * numbers.itemsize for step in tensor.strides]
  return np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.shape, strides, writeable=False)


def _selected(path: str, tree: Any, key: str | None) -> dict[str, Any]:
  """The part of a file's content that `read` returns, flat; tensors are arrays or still `_Tensor`."""
  kind = (_Tensor, np.ndarray)
  if isinstance(tree, kind):
    raise UserError(f'{path} holds a single tensor without a name; expected a dictionary of them')
  entries = list(tree) if isinstance(tree, Mapping) else []
  if key is not None and key not in entries:
    raise UserError(f'{path} has no entry {key!r}; it has {_shown(entries)}')
  if key is not None or 'state_dict' in entries:
    tree = tree[key or 'state_dict']
  flat: dict[str, Any] = {}
  for names, tensor in _leaves(path, tree, kind):
    name = '.'.join(names)
    if name in flat:
      raise UserError(f'{path} has two tensors named {name}; choose one of its entries {_shown(entries)}')
    flat[name] = tensor
  if not flat:
    raise UserError(f'{path} holds no tensors{"" if key is None else f" in entry {key!r}"}; it has {_shown(entries)}')
  return flat


def _shown(entries: list[Any]) -> str:
  return some([str(entry)[:40] for entry in entries], shown=6) or 'no entries'


def _leaves(path: str, tree: Any, kind: Any, names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
  """Path and value of everything of `kind` in nested dictionaries and lists."""
  if len(names) > 32:
    raise UserError(f'{path} nests dictionaries without end, at {".".join(names[:4])}; it cannot be weights')
  if isinstance(tree, kind):
    yield names, tree
  elif isinstance(tree, Mapping):
    for name, value in tree.items():
      yield from _leaves(path, value, kind, (*names, str(name)))
  elif type(tree) in (list, tuple):
    for i, value in enumerate(tree):
      yield from _leaves(path, value, kind, (*names, str(i)))


class _Unpickler(PlainUnpickler):
  """Builds plain containers, and notes tensors; whatever else a pickle wants to call ends it."""

  def __init__(self, path: str, stream: io.BytesIO):
    self.storages: dict[str, np.dtype] = {}  # Those met so far, by key.
    self._path = path
    known = {
      ('collections', 'OrderedDict'): collections.OrderedDict,
      ('collections', 'Counter'): collections.OrderedDict,
      ('torch', 'Size'): tuple,
      ('torch._utils', '_rebuild_tensor'): self._tensor,
      ('torch._utils', '_rebuild_tensor_v2'): self._tensor,
      ('torch._utils', '_rebuild_parameter'): self._parameter,
      ('torch._utils', '_rebuild_parameter_with_state'): self._parameter,
    }
    known |= {('torch', name): _StorageType(dtype) for name, dtype in _STORAGES.items()}
    super().__init__(path, stream, known, encoding='utf-8', way_out=_WAY_OUT)

  def persistent_load(self, pid: Any) -> _Storage:
    """A storage: ('storage', type, key, device, count[, window])."""
    if not isinstance(pid, tuple) or len(pid) not in (5, 6) or not isinstance(pid[1], _StorageType):
      what = pid[0] if isinstance(pid, tuple) and pid else pid
      raise UserError(
        f'{self._path} holds {str(what)[:40]!r} beside tensors, such as a whole model; in PyTorch, save '
        'model.state_dict() instead'
      )
    window = pid[5] if len(pid) == 6 else None
    storage = _Storage(np.dtype(pid[1].dtype), pid[2], int(window[1]) if window else 0)
    self.storages[storage.key] = storage.dtype
    return storage

  def _tensor(self, storage: _Storage, offset: int, shape: Any, strides: Any, *_: Any) -> _Tensor:
    if not isinstance(storage, _Storage):
      raise ValueError('a tensor without storage')
    return _Tensor(storage, offset, tuple(shape), tuple(strides))

  def _parameter(self, tensor: _Tensor, *_: Any) -> _Tensor:
    return tensor
