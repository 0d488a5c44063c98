"""The networks that metrics and losses measure with: made from files that the user has downloaded, kept in one folder.

None come with the package and nothing is ever downloaded. A network is one .npz, its variables and where they are from.
"""

import dataclasses
import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util

from jaxface.convert import inception, lpips, resnet50_face, torch_file, vgg19
from jaxface.errors import UserError
from jaxface.metrics.lpips import Lpips
from jaxface.models.inception import InceptionFeatures
from jaxface.models.resnet50_face import FaceResNet50
from jaxface.models.vgg import VGG19, Vgg
from jaxface.processes import giving_up_together
from jaxface.untrained import untrained

# What to fetch for each network, by the names it is published under.
_WHEEL = 'lpips-0.1.4-py3-none-any.whl'
FILES = {
  'lpips-alex': ('alexnet-owt-7be5be79.pth', _WHEEL),
  'lpips-vgg': ('vgg16-397923af.pth', _WHEEL),
  'lpips-squeeze': ('squeezenet1_1-b8a52dc0.pth', _WHEEL),
  'inception': ('pt_inception-2015-12-05-6726825d.pth',),
  'resnet50_face': ('resnet50_ft_weight.pkl',),
  'vgg19': ('vgg19-dcbb9e9d.pth',),
}
_SOURCES = {
  'lpips': "torchvision's weights and the lpips package's wheel (or the weights/v0.1/{net}.pth in it)",
  'inception': 'the weights of pytorch-fid',
  'resnet50_face': "VGGFace2's fine-tuned ResNet-50 as VGGFace2-pytorch has it",
  'vgg19': "torchvision's weights; BeautyGAN's vgg_conv.pth will do, too",
}
# Before a network's name: of the published size, never trained, no file needed. It knows nothing, and takes its time.
UNTRAINED = 'untrained:'

# Large enough for every network.
_SIDE = 96
# Converter and module.
_OF_ONE_FILE = {
  'inception': (inception, InceptionFeatures),
  # As it measures: pictures of any size, products in float32. A loss says so where it compares otherwise.
  'resnet50_face': (resnet50_face, lambda: FaceResNet50(pool='global', precision='highest')),
  'vgg19': (vgg19, lambda: Vgg(('relu4_1',), VGG19)),
}


@dataclasses.dataclass(frozen=True)
class Network:
  """A frozen network, ready for `module.apply(variables, ...)`.

  Attributes:
    module: `Lpips`, `InceptionFeatures`, `FaceResNet50`, or a `Vgg` of 19 layers for its relu4_1.
    variables: numpy, float32; pass them to jitted functions as arguments.
    files: SHA-256 of the files it was made from, by their names.
  """

  module: nn.Module
  variables: dict[str, Any]
  files: dict[str, str]

  def __str__(self):
    return ', '.join(f'{name} sha256:{digest[:8]}' for name, digest in self.files.items())


def default_dir() -> Path:
  """$JAXFACE_WEIGHTS, else ~/.cache/jaxface/weights."""
  return Path(os.environ.get('JAXFACE_WEIGHTS') or '~/.cache/jaxface/weights').expanduser()


def register(
  name: str, files: Sequence[str | os.PathLike], weights_dir: str | os.PathLike | None = None
) -> dict[str, Any]:
  """Makes network `name`, a key of `FILES`, of downloaded files; `load` then finds it. Returns a report.

  LPIPS needs two, in any order: the backbone's weights, and the linear ones, as they are or in the lpips package's
  wheel. UserError where a file is missing, is something else, or belongs to another network.
  """
  _check_name(name)
  needed = FILES[name]
  if len(files) != len(needed):
    raise UserError(f'{name} is made of {len(needed)} files, not {len(files)}: {_how_to_get(name)}')
  state, digests = {}, {}
  for path in map(Path, files):
    tensors, file, digest = _read(path, name)
    state |= tensors
    digests[file] = digest
  _, variables = _from_reference(name, state)
  folder = Path(weights_dir or default_dir())
  final = folder / f'{name}.npz'
  arrays = traverse_util.flatten_dict(variables, sep='/')
  unfinished = folder / f'.{name}.{os.getpid()}.tmp'
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with open(unfinished, 'wb') as file:
      np.savez(file, files=np.array(json.dumps(digests)), **arrays)
    os.replace(unfinished, final)
  except OSError as error:
    raise UserError(f'cannot write {final}: {error.strerror}; set JAXFACE_WEIGHTS to another folder') from error
  finally:
    unfinished.unlink(missing_ok=True)
  return {
    'network': name,
    'files': digests,
    'parameters': sum(int(array.size) for array in arrays.values()),
    'written': os.fspath(final),
  }


def load(name: str, weights_dir: str | os.PathLike | None = None) -> Network:
  """Network `name`, a key of `FILES`, as `register` has made it; `weights_dir` is by default `default_dir()`.

  With `UNTRAINED` before the name, one that was never trained, to measure speed. UserError where it is not there, with
  what to download and which command to say. Several processes must load it together.
  """
  if name.startswith(UNTRAINED):
    return _untrained(name.removeprefix(UNTRAINED))
  _check_name(name)
  path = Path(weights_dir or default_dir()) / f'{name}.npz'
  with giving_up_together():  # Each machine of several has a folder of its own.
    if not path.is_file():
      raise UserError(f'{path} is missing: {_how_to_get(name, weights_dir)}')
    try:
      with np.load(path, allow_pickle=False) as arrays:
        flat = dict(arrays)
      files = json.loads(str(flat.pop('files')))
      variables = traverse_util.unflatten_dict(flat, sep='/')
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
      raise UserError(f'{path} is damaged: {_how_to_get(name, weights_dir)}') from error
  return Network(_module(name), variables, files)


def _untrained(name: str) -> Network:
  _check_name(name)
  module = _module(name)
  picture = jax.ShapeDtypeStruct((1, _SIDE, _SIDE, 3), np.float32)
  shapes = jax.eval_shape(module.init, jax.random.key(0), *[picture] * (2 if isinstance(module, Lpips) else 1))
  return Network(module, untrained(shapes), {})


def _module(name: str) -> nn.Module:
  return _OF_ONE_FILE[name][1]() if name in _OF_ONE_FILE else Lpips(name.removeprefix('lpips-'))


def _check_name(name: str) -> None:
  if name not in FILES:
    raise UserError(f'unknown network {name!r}; choose from {", ".join(FILES)}')


def _how_to_get(name: str, weights_dir: str | os.PathLike | None = None) -> str:
  kind, _, net = name.partition('-')
  files = FILES[name]
  where = '' if weights_dir is None else f'JAXFACE_WEIGHTS={os.fspath(weights_dir)} '
  command = f'{where}jaxface convert {name} {" ".join(files)}'
  return f'download {" and ".join(files)} ({_SOURCES[kind].format(net=net)}), and say `{command}`'


def _from_reference(name: str, state: Mapping[str, np.ndarray]) -> tuple[nn.Module, dict[str, Any]]:
  if name in _OF_ONE_FILE:
    return _OF_ONE_FILE[name][0].from_reference(state)
  return lpips.from_reference(state, net=name.removeprefix('lpips-'))


def _read(path: Path, name: str) -> tuple[dict[str, np.ndarray], str, str]:
  """A file's tensors, its name, and its hash: of a wheel, those of the linear weights in it."""
  if name == 'resnet50_face':
    return resnet50_face.read(path), path.name, _sha256(path)
  member = f'lpips/weights/v0.1/{name.removeprefix("lpips-")}.pth'
  if path.suffix != '.whl':
    return torch_file.read(path), path.name, _sha256(path)
  try:
    with zipfile.ZipFile(path) as wheel:
      data = wheel.read(member)
  except (OSError, KeyError, zipfile.BadZipFile) as error:
    raise UserError(f'{path}: no wheel of the lpips package, or no {member} in it; expected {_WHEEL}') from error
  with tempfile.TemporaryDirectory() as folder:
    extracted = Path(folder, Path(member).name)
    extracted.write_bytes(data)
    return torch_file.read(extracted), member, _sha256(extracted)


def _sha256(path: Path) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
