"""Folders of runs, which may lie in an object store (gs://bucket/runs/best) as well as on a disk."""

import contextlib
import errno
import fcntl
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from jaxface.errors import UserError

# `pathlib` writes 'gs://bucket' as 'gs:/bucket'.
_ADDRESS = re.compile(r'([a-z][a-z0-9]+):/+(.+)', re.DOTALL)


def folder(path: str | os.PathLike) -> Path:
  """`path` as a `Path`, or, where it begins with gs://, as etils' equal for object stores.

  Raises UserError for other stores, and where the package that reaches Google's is not installed.
  """
  address = _ADDRESS.fullmatch(os.fspath(path))
  if address is None:
    return Path(path)
  scheme, rest = address.groups()
  mounted = 'or mount the store (gcsfuse, s3fs, blobfuse) and give that folder'
  if scheme != 'gs':
    raise UserError(
      f'{scheme}://{rest} is in an object store that runs cannot write to; give a gs:// folder, {mounted}'
    )
  # Imported here: command lines without an object store should not wait for it.
  import fsspec
  from etils import epath

  try:
    fsspec.get_filesystem_class('gcs')
  except ImportError as error:
    raise UserError(f'gs://{rest} needs the package gcsfs: pip install gcsfs, {mounted}') from error
  return epath.Path(f'gs://{rest}')


def in_object_store(path: Path) -> bool:
  """Whether `path`, as `folder` returns it, is in an object store: no locks, no appending, whole files at once."""
  return '://' in os.fspath(path)


def lock(handle: int) -> bool:
  """Locks an open file or folder for this process alone, until it is closed; False where another has done so.

  Some network file systems have no locks: not to start two runs is then the user's care.
  """
  try:
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  except OSError as error:
    if error.errno not in (errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
      raise
  return True


def append(path: Path, text: str) -> None:
  """Adds `text` to the end of a file and closes it, so that it is there whatever happens next."""
  if in_object_store(path):
    path.write_text((path.read_text() if path.exists() else '') + text)
    return
  with open(path, 'a') as file:
    file.write(text)


def check_writable(path: Path, option: str = '--out', *, of_files: bool = False) -> None:
  """Makes the folder of a file that long work is to end with; UserError where it cannot be written there.

  A file that is there stays as it is. `option` is what the user has named it by; `of_files`: it is a folder to fill.
  """
  file = path / 'any' if of_files else path
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.exists() and not file.is_file():
      raise IsADirectoryError(errno.EISDIR, 'it is a folder' if file.is_dir() else 'it is no file but a device')
    if in_object_store(file):
      return
    if file.exists() and not os.access(file, os.W_OK):
      raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    # What a folder's mode permits, /proc, full shares and long names still refuse.
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f'.{file.name}.', suffix='.tmp'):
      pass
  except OSError as error:
    why = f'{file.parent} is a file' if os.path.isfile(file.parent) else error.strerror or error
    raise UserError(f'cannot write {path}: {why}; choose another {option}') from error


@contextlib.contextmanager
def written_locally(path: Path) -> Iterator[Path]:
  """A file on a disk to write, for what knows no object stores; it becomes `path`, whose folder is made."""
  path.parent.mkdir(parents=True, exist_ok=True)
  if not in_object_store(path):
    yield path
    return
  with tempfile.TemporaryDirectory() as scratch:
    yield Path(scratch) / path.name
    path.write_bytes((Path(scratch) / path.name).read_bytes())
