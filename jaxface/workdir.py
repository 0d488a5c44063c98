"""A run's folder: its lock, its resolved configuration and what it ran on."""

import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxface.errors import UserError
from jaxface.folders import folder, in_object_store, lock

CONFIG_FILE = 'config.json'
ENVIRONMENT_FILE = 'environment.json'
CHECKPOINT_FOLDER = 'checkpoints'

# What may differ when a run goes on: how far, how often, where and on what, but not what is computed.
FREE_KEYS = (
  'total_steps', 'log_steps', 'eval_steps', 'eval_batches', 'render_steps', 'checkpoint_steps', 'keep_last',
  'keep_best', 'parallel', 'steps_per_dispatch', 'data.data_dir', 'data.workers', 'data.resident', 'init_from',
)  # fmt: skip


def write_atomically(path: Path, text: str) -> None:
  """Writes `text` so that a reader sees the old file or the new one, never half of it."""
  if in_object_store(path):  # Objects are written whole or not at all.
    path.write_text(text)
    return
  draft = path.with_name(path.name + '.draft')
  draft.write_text(text)
  os.replace(draft, path)


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
  """Holds `workdir` (made if missing) for this run alone; the lock goes with the process, however it ends.

  Object stores and some network file systems have no locks: there, nothing keeps a second run away.
  """
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    opened = contextlib.nullcontext() if in_object_store(workdir) else open(workdir / '.lock', 'w')  # noqa: SIM115
  except OSError as error:
    raise UserError(
      f'cannot write to the workdir {workdir}: {error.strerror or error}; choose another --workdir'
    ) from error
  with opened as file:
    if file is not None and not lock(file.fileno()):
      raise UserError(f'the workdir {workdir} is in use by another run; wait for it or choose another --workdir')
    yield


def _flatten(tree: Any, prefix: str = '') -> dict[str, Any]:
  if not isinstance(tree, dict):
    return {prefix: tree}
  flat = {}
  for key, value in tree.items():
    flat.update(_flatten(value, f'{prefix}.{key}' if prefix else key))
  return flat


def read_config(workdir: Path) -> ConfigDict:
  """The configuration that the run in `workdir` was started with."""
  path = folder(workdir) / CONFIG_FILE
  if not path.is_file():
    raise UserError(f'{workdir} holds no run (no {CONFIG_FILE}); give the --workdir of `jaxface train`')
  try:
    known = json.loads(path.read_text())
  except ValueError:
    known = None
  if not isinstance(known, dict) or 'task' not in known:
    raise UserError(f'{path} is no configuration of a jaxface run; give the --workdir of `jaxface train`')
  return ConfigDict(_tuples(known))


def _tuples(value: Any) -> Any:
  # JSON knows lists only; a module with a list in a field cannot be hashed.
  if isinstance(value, list):
    return tuple(_tuples(item) for item in value)
  if isinstance(value, dict):
    return {key: _tuples(item) for key, item in value.items()}
  return value


def shared(config: ConfigDict) -> dict[str, Any]:
  """What several processes must have in common of a configuration, by its keys: all but where and how data are read."""
  flat = _flatten(_tuples(json.loads(config.to_json())))
  return {key: value for key, value in flat.items() if key not in ('data.data_dir', 'data.workers')}


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
  """Keys, as 'key: old -> new', that differ and must not when a run goes on.

  An option that only one of them knows, and which is off there (False, 0, ''), makes no difference.
  """
  before, after = (_flatten(_tuples(json.loads(config.to_json()))) for config in (old, new))
  found = []
  for key in sorted(before.keys() | after.keys()):
    was, now = before.get(key), after.get(key)
    same = was == now or (None in (was, now) and not (was or now))
    if not same and not any(key == free or key.startswith(free + '.') for free in FREE_KEYS):
      found.append(f'{key}: {was!r} -> {now!r}')
  return found


def _git_state() -> dict[str, str] | None:
  here = Path(__file__).parent

  def git(*arguments: str) -> str:
    return subprocess.run(['git', *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

  try:
    return {'commit': git('rev-parse', 'HEAD'), 'changes': git('status', '--porcelain', '--untracked-files=no')}
  except (OSError, subprocess.CalledProcessError):
    return None  # An installed package has no repository.


def environment() -> dict[str, Any]:
  """Versions, devices and git state: what one needs to know to run this again."""
  packages = ('jaxface', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'dm-pix', 'numpy')
  return {
    'command': sys.argv,
    'python': platform.python_version(),
    'platform': platform.platform(),
    'packages': {name: importlib.metadata.version(name) for name in packages},
    'backend': jax.default_backend(),
    'devices': [f'{device.device_kind} {device.id}' for device in jax.devices()],
    'processes': jax.process_count(),
    'git': _git_state(),
  }


def _saved(workdir: Path) -> list[Path]:
  """The checkpoints that are there."""
  checkpoints = workdir / CHECKPOINT_FOLDER
  return [entry for entry in checkpoints.iterdir() if entry.name.isdigit()] if checkpoints.is_dir() else []


def open_run(workdir: Path, config: ConfigDict) -> ConfigDict | None:
  """Writes `config` and the environment into `workdir`; one that has saved with another configuration is an error.

  Returns the configuration that the run there was last opened with, None for a run that has saved nothing yet.
  """
  before = read_config(workdir) if _saved(workdir) and (workdir / CONFIG_FILE).is_file() else None
  if before is not None:
    changed = differences(before, config)
    if changed:
      raise UserError(
        f'{workdir} holds a run of another configuration ({"; ".join(changed[:3])}'
        f'{f"; and {len(changed) - 3} more" if len(changed) > 3 else ""}); choose another --workdir'
      )
  write_atomically(workdir / CONFIG_FILE, config.to_json(indent=2))
  write_atomically(workdir / ENVIRONMENT_FILE, json.dumps(environment(), indent=2))
  return before


def check_shared(workdir: Path) -> None:
  """Raises where this process does not see what process 0 has written into `workdir`."""
  if not (workdir / CONFIG_FILE).is_file():
    raise UserError(
      f'process {jax.process_index()} does not see the workdir {workdir} that process 0 has made; '
      'several processes need a --workdir that all of them share, such as gs://, NFS, Lustre or a mounted bucket'
    )


def check_disk(workdir: Path, kept: int, size: int) -> None:
  """Raises before anything is written where the disk has no room for `kept` checkpoints of `size` bytes.

  And for one more, since the new one is written before an old one goes. Those of a run that goes on are there already.
  """
  if in_object_store(workdir):
    return
  needed = max(kept + 1 - len(_saved(workdir)), 1) * size
  free = shutil.disk_usage(workdir).free
  if free < needed:
    raise UserError(
      f'{workdir} has {free / 2**30:.2f} GiB free and this run needs {needed / 2**30:.2f} GiB for its checkpoints; '
      'make room or choose another --workdir'
    )
