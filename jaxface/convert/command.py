"""`jaxface convert`: a public checkpoint file becomes what the other commands read.

Systems that are trained here become a workdir (`WORKDIRS`), which evaluate, train and the rest accept; networks that
only serve others, such as metrics, are written to where those look for them (`WEIGHTS`).
"""

import functools
import hashlib
import json
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxface import labels, weights
from jaxface import workdir as workdirs
from jaxface.checkpoint import Checkpoints
from jaxface.convert import beautygan, from_reference, ipmnet, keras_h5, resnet18, to_reference, torch_file, vae
from jaxface.errors import UserError
from jaxface.models.beautygan import BeautyGenerator
from jaxface.models.bisenet import PUBLISHED, BiSeNet
from jaxface.models.ipmnet import IPMNet
from jaxface.models.resnet import ResNet18
from jaxface.models.vae import FaceMaskVAE
from jaxface.runs import engine_for
from jaxface.state import TrainState, count

Report = dict[str, Any]
Tensors = Mapping[str, np.ndarray]


class Workdir(NamedTuple):
  """How a system's checkpoint becomes a workdir.

  Attributes:
    network: what the file holds, a key of `convert.SYSTEMS`.
    experiment: configuration file whose dataset, loss and optimizer a workdir gets unless another is given.
    read: (file, entry or None) -> tensors under their public names.
    canonical: the tensors that are taken over, under the names that `to_reference` gives them.
    variant: the variant of the experiment that the module is.
    configure: writes into `config.model` what the module is.
    about: what the report says of the module.
    try_next: a command to go on with, the workdir being {}.
    goldens: stored outputs of the public code that tests hold the network to.
    where: path of the network inside the task's; what lies outside keeps its initial values.
    needs_size: whether a network's layers depend on the size of its pictures.
  """

  network: str
  experiment: str
  read: Callable[[Path, str | None], Tensors]
  canonical: Callable[[Tensors], Tensors]
  variant: Callable[[Any], str]
  configure: Callable[[ConfigDict, Any], None]
  about: Callable[[Any], Report]
  try_next: str
  goldens: str
  where: tuple[str, ...] = ()
  needs_size: bool = False


def _read_keras(file: Path, key: str | None) -> Tensors:
  if key is not None:
    raise UserError(f'--key {key} is for PyTorch files; {file} is read as Keras weights')
  return keras_h5.read(file)


def _read_torch(file: Path, key: str | None) -> Tensors:
  return torch_file.read(file, key=key)


def _read_twice_held(file: Path, key: str | None) -> Tensors:
  """The public code saves one generator as entries 'a' and 'b'; other files hold its tensors alone."""
  tensors = torch_file.read(file, key=key)
  if key is None and tensors and all(name.startswith(('a.', 'b.')) for name in tensors):
    return {name.removeprefix('a.'): tensor for name, tensor in tensors.items() if name.startswith('a.')}
  return tensors


def _configure_vae(model: ConfigDict, module: FaceMaskVAE) -> None:
  for name in ('image_size', 'latent_dim', 'encoder_widths', 'decoder_widths', 'mask_widths', 'sampling'):
    model[name] = getattr(module, name)
  model.masks = bool(module.mask_widths)


def _configure_parser(model: ConfigDict, module: BiSeNet) -> None:
  if module.num_classes != labels.NUM_CLASSES:
    raise UserError(f'this parser has {module.num_classes} classes; only {labels.NUM_CLASSES} can be used here')
  for name in PUBLISHED._fields:
    model[name] = getattr(module, name)
  model.label_order = 'bisenet'


def _configure_backbone(model: ConfigDict, module: ResNet18) -> None:
  model.resnet_widths = module.widths


def _configure_ipmnet(model: ConfigDict, module: IPMNet) -> None:
  for name in ('dim', 'mlp_dim', 'style_dim', 'num_downsamples', 'num_blocks'):
    model[name] = getattr(module, name)


def _configure_beautygan(model: ConfigDict, module: BeautyGenerator) -> None:
  model.dim, model.num_blocks = module.dim, module.num_blocks


_MAKEUP = {
  'variant': lambda module: 'code',
  'about': lambda module: {'where': 'the generator; the discriminators are random'},
  'try_next': 'jaxface makeup --workdir {} --target A.jpg --reference B.jpg --parser runs/parser --out made_up.png',
  'where': ('generator',),
}


WORKDIRS = {
  'vae': Workdir(
    network='vae',
    experiment='experiments/vae.py',
    read=_read_keras,
    canonical=vae.counted_from_zero,
    variant=lambda module: 'mask_ssim_l2' if module.mask_widths else 'nomask_ssim_l2',
    configure=_configure_vae,
    about=lambda module: {'mask_decoder': bool(module.mask_widths)},
    try_next='jaxface reconstruct --workdir {} --images PHOTOS --out grid.png',
    goldens='vae',
    needs_size=True,
  ),
  'bisenet': Workdir(
    network='bisenet',
    experiment='experiments/bisenet.py',
    read=_read_torch,
    canonical=resnet18.canonical,
    variant=lambda module: 'celebamask_hq',
    configure=_configure_parser,
    about=lambda module: {'classes': ', '.join(labels.BISENET_CLASSES)},
    try_next='jaxface parse --parser {} --images PHOTOS --out parsed',
    goldens='bisenet',
  ),
  # The parser's context path begins with ImageNet's weights: a workdir to start training from.
  'resnet18': Workdir(
    network='resnet18',
    experiment='experiments/bisenet.py',
    read=_read_torch,
    canonical=resnet18.canonical,
    variant=lambda module: 'celebamask_hq',
    configure=_configure_backbone,
    about=lambda module: {'where': "the parser's context path; the rest is random"},
    try_next='jaxface train --config experiments/bisenet.py:celebamask_hq --config.init_from={} --workdir runs/parser',
    goldens='bisenet',
    where=('context', 'resnet'),
  ),
  'ipmnet': Workdir(
    network='ipmnet_generator',
    experiment='experiments/ipmnet.py',
    read=_read_twice_held,
    canonical=ipmnet.canonical,
    configure=_configure_ipmnet,
    goldens='ipmnet',
    **_MAKEUP,
  ),
  'beautygan': Workdir(
    network='beautygan_generator',
    experiment='experiments/beautygan.py',
    read=_read_torch,
    canonical=beautygan.canonical,
    configure=_configure_beautygan,
    goldens='beautygan',
    **_MAKEUP,
  ),
}

# {system: files -> report}: writes the weights to where the commands that use them look.
WEIGHTS: dict[str, Callable[[Sequence[Path]], Report]] = {
  name: functools.partial(weights.register, name) for name in weights.FILES
}


def default_experiment(system: str) -> str | None:
  """The configuration file that `convert` of `system` starts from; None where it needs none or knows no such system."""
  return WORKDIRS[system].experiment if system in WORKDIRS else None


def convert(
  system: str,
  file: Path,
  workdir: Path | None,
  *,
  make_config: Callable[[str], ConfigDict],
  image_size: int | None = None,
  key: str | None = None,
  more: Sequence[Path] = (),
) -> None:
  """Reads `file`; writes a workdir with its weights as checkpoint 0 and a report, convert.json, or plain weights.

  Args:
    system: a key of `WORKDIRS` or `WEIGHTS`.
    file: the public checkpoint.
    workdir: folder to make; for systems in `WORKDIRS` only.
    make_config: configuration of a variant: dataset, loss and optimizer to go on with.
    image_size: of the network's pictures, where it is not the usual one.
    key: entry of a PyTorch file to take, where it has several.
    more: further files, for systems whose weights come in parts.
  """
  if system in WEIGHTS:
    print(json.dumps(WEIGHTS[system]([file, *more]), indent=2))
    return
  if system not in WORKDIRS:
    known = ', '.join([*WORKDIRS, *WEIGHTS])
    raise UserError(f'unknown system {system!r}; checkpoints can be converted for {known}')
  if workdir is None:
    raise UserError(f'a {system} checkpoint becomes a workdir; say which one to make: --workdir')
  if more:
    raise UserError(f'unexpected file {more[0]}; a {system} checkpoint is one file')
  report = _make_workdir(system, Path(file), Path(workdir), make_config, image_size, key)
  print(json.dumps(report, indent=2))
  print(f'written: {workdir}; try: {WORKDIRS[system].try_next.format(workdir)}')


def _make_workdir(
  system: str,
  file: Path,
  workdir: Path,
  make_config: Callable[[str], ConfigDict],
  image_size: int | None,
  key: str | None,
) -> Report:
  way = WORKDIRS[system]
  tensors = way.read(file, key)
  options = {'image_size': image_size} if way.needs_size else {}
  module, variables = from_reference(way.network, tensors, **options)
  config = make_config(way.variant(module))
  with config.unlocked():
    way.configure(config.model, module)
    if image_size is not None:
      config.model.image_size = image_size
  engine = engine_for(config, training=False)
  with workdirs.locked(workdir):
    if (workdir / workdirs.CHECKPOINT_FOLDER).exists():
      raise UserError(f'{workdir} already holds checkpoints; choose another --workdir')
    state = engine.to_saved(engine.init())
    params, stats = variables['params'], variables.get('batch_stats')
    state = state.replace(
      params=_placed(state.params, way.where, params),
      model_state=state.model_state if stats is None else _placed(state.model_state, way.where, stats),
      ema=None if state.ema is None else _placed(state.ema, way.where, params),
    )
    workdirs.open_run(workdir, config)
    with Checkpoints(workdir) as checkpoints:
      checkpoints.save(0, state, next_batch=0, fingerprint=None)
    report = {
      'system': system,
      'file': file.name,
      'sha256': hashlib.sha256(file.read_bytes()).hexdigest(),
      'tensors': len(tensors),
      'numbers': sum(int(tensor.size) for tensor in tensors.values()),
      'parameters': count(variables['params']),
      'image_size': config.model.image_size,
      **way.about(module),
      'parity': _parity(way, way.canonical(tensors), state, variables),
    }
    workdirs.write_atomically(workdir / 'convert.json', json.dumps(report, indent=2) + '\n')
  return report


def _placed(tree: Any, where: tuple[str, ...], part: Any) -> Any:
  """`tree` with what lies at `where` replaced by `part`, as device arrays."""
  if not where:
    return jax.tree.map(jnp.asarray, part)
  return {**tree, where[0]: _placed(tree[where[0]], where[1:], part)}


def _parity(way: Workdir, tensors: Tensors, state: TrainState, collections: Iterable[str]) -> Report:
  """Takes the saved state's collections back to public names and compares with the file."""
  trees = {'params': state.params, 'batch_stats': state.model_state}
  variables = {name: functools.reduce(operator.getitem, way.where, trees[name]) for name in collections}
  back = to_reference(way.network, jax.device_get(variables))
  differences = [
    float(np.abs(back[name] - tensor.astype(np.float32)).max(initial=0)) for name, tensor in tensors.items()
  ]
  return {
    'tensors compared': len(differences),
    'largest difference': max(differences, default=0.0),
    'network': f'held to stored outputs of the public code: tests/goldens/{way.goldens}',
  }
