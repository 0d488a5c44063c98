"""`jaxface convert`: a public checkpoint file becomes what the other commands read.

Systems that are trained here become a workdir (`WORKDIRS`), which evaluate, train and the rest accept; networks that
only serve others, such as metrics, are written to where those look for them (`weights.FILES`).
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
from jaxface.convert import (
  beautygan,
  from_reference,
  ipmnet,
  keras_h5,
  resnet18,
  scadm,
  tensors,
  to_reference,
  torch_file,
  vae,
  vqgan,
)
from jaxface.diffusion.schedule import SCHEDULES, make_schedule
from jaxface.errors import UserError
from jaxface.models.beautygan import BeautyGenerator
from jaxface.models.bisenet import PUBLISHED, BiSeNet
from jaxface.models.ipmnet import IPMNet
from jaxface.models.resnet import ResNet18
from jaxface.models.scadm import SCAUNet
from jaxface.models.sdm import SDMUNet
from jaxface.models.unet_layers import GROUPS
from jaxface.models.vae import FaceMaskVAE
from jaxface.models.vqgan import VQGAN
from jaxface.runs import engine_for
from jaxface.state import TrainState, count
from jaxface.tasks import Task

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
    configure: writes into a configuration what the module is.
    about: what the report says of the module.
    try_next: a command to go on with, the workdir being {}.
    goldens: stored outputs of the public code that tests hold the network to.
    where: path of the network inside the task's; what lies outside keeps its initial values.
    needs_size: whether a network's layers depend on the size of its pictures.
    options: for `from_reference`.
    first_stage: (tensors) -> those of the first stage, where a file holds one; it becomes a workdir of its own.
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
  options: Mapping[str, Any] | None = None
  first_stage: Callable[[Tensors], Tensors] | None = None


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


def _read_first_stage(file: Path, key: str | None) -> Tensors:
  """An autoencoder's tensors, of its own file or of a whole latent diffusion's."""
  return scadm.first_stage_of(torch_file.read(file, key=key))


def _configure_vae(config: ConfigDict, module: FaceMaskVAE) -> None:
  model = config.model
  for name in ('image_size', 'latent_dim', 'encoder_widths', 'decoder_widths', 'mask_widths', 'sampling'):
    model[name] = getattr(module, name)
  model.masks = bool(module.mask_widths)


def _check_classes(what: str, num_classes: int) -> None:
  if num_classes != labels.NUM_CLASSES:
    raise UserError(f'this {what} has {num_classes} classes; only {labels.NUM_CLASSES} can be used here')


def _configure_parser(config: ConfigDict, module: BiSeNet) -> None:
  _check_classes('parser', module.num_classes)
  for name in PUBLISHED._fields:
    config.model[name] = getattr(module, name)
  config.model.label_order = 'bisenet'


def _configure_backbone(config: ConfigDict, module: ResNet18) -> None:
  config.model.resnet_widths = module.widths


def _configure_ipmnet(config: ConfigDict, module: IPMNet) -> None:
  for name in ('dim', 'mlp_dim', 'style_dim', 'num_downsamples', 'num_blocks'):
    config.model[name] = getattr(module, name)


def _configure_beautygan(config: ConfigDict, module: BeautyGenerator) -> None:
  config.model.dim, config.model.num_blocks = module.dim, module.num_blocks


def _configure_vqgan(config: ConfigDict, module: VQGAN) -> None:
  for name in ('width', 'multipliers', 'num_blocks', 'latent_channels', 'codebook_size'):
    config.model[name] = getattr(module, name)


# Of the denoisers, but for the channels of an attention head: no tensor's shape tells, the configuration does.
def _configure_unet(model: ConfigDict, module: SCAUNet | SDMUNet) -> None:
  _check_classes('denoiser', module.num_classes)
  model.channels = module.model_channels
  for name in ('multipliers', 'num_blocks', 'attention_factors', 'spade_hidden'):
    model[name] = getattr(module, name)


def _configure_scadm(config: ConfigDict, module: scadm.SCADM) -> None:
  _configure_unet(config.model, module.unet)
  for theirs, ours in (('width', 'width'), ('token_dim', 'dim'), ('num_downsamples', 'downsamples')):
    config.model[f'style_{ours}'] = getattr(module.style, theirs)
  config.first_stage.scale = module.scale
  if module.betas is not None:
    config.schedule.update(_schedule_of(module.betas))


def _schedule_of(betas: np.ndarray) -> dict[str, Any]:
  """The `schedule` part of an experiment that has these betas."""
  # Rounded, what was float64 and is float32 is as it was given.
  start, end = (float(f'{betas[i]:.6g}') for i in (0, -1))
  for name in SCHEDULES:
    ours = make_schedule(name, start=start, end=end).betas
    if ours.shape == betas.shape and np.allclose(ours, betas, rtol=1e-4):
      return {'name': name, 'start': start, 'end': end}
  raise UserError(
    f'this checkpoint has a noise schedule of its own, {len(betas)} betas from {start:g} to {end:g}; known are '
    f'{", ".join(SCHEDULES)}, of {len(ours)}'
  )


def _configure_sdm(config: ConfigDict, module: SDMUNet) -> None:
  if not module.learn_sigma:
    raise UserError('this denoiser predicts the noise alone; SDM also predicts the variance of a step, in 6 channels')
  _configure_unet(config.model, module)


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
  'vqgan': Workdir(
    network='vqgan',
    experiment='experiments/vqgan.py',
    read=_read_first_stage,
    canonical=vqgan.canonical,
    variant=lambda module: 'published',
    configure=_configure_vqgan,
    about=lambda module: {'where': 'the autoencoder; the discriminator is random', 'factor': module.factor},
    try_next='jaxface train --config experiments/scadm.py:published --config.first_stage.workdir={} '
    '--workdir runs/scadm',
    goldens='vqgan',
    where=('generator',),
  ),
  'scadm': Workdir(
    network='scadm',
    experiment='experiments/scadm.py',
    read=_read_torch,
    canonical=scadm.canonical,
    variant=lambda module: 'public',
    configure=_configure_scadm,
    about=lambda module: {'latents': f'of 1/{module.first_stage.factor} of the size, times {module.scale:g}'},
    try_next='jaxface synthesize --workdir {} --labels map.png --out faces.png',
    goldens='scadm',
    first_stage=scadm.first_stage_of,
  ),
  'sdm': Workdir(
    network='sdm_unet',
    experiment='experiments/sdm.py',
    read=_read_torch,
    canonical=tensors.canonical,
    variant=lambda module: 'guided',
    configure=_configure_sdm,
    about=lambda module: {'where': 'both the averaged network and the trained one'},
    try_next='jaxface synthesize --workdir {} --labels map.png --out faces.png',
    goldens='sdm',
    where=('unet',),
    # Of any head the parameters are the same; this one fits all widths.
    options={'head_channels': GROUPS},
  ),
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
  make_first_stage: Callable[[str], ConfigDict] | None = None,
  image_size: int | None = None,
  key: str | None = None,
  more: Sequence[Path] = (),
) -> None:
  """Reads `file`; writes a workdir with its weights as checkpoint 0 and a report, convert.json, or plain weights.

  Where the file holds a first stage, too, that becomes a workdir beside the other, whose name ends in '_first_stage'.

  Args:
    system: a key of `WORKDIRS` or `weights.FILES`.
    file: the public checkpoint.
    workdir: folder to make; for systems in `WORKDIRS` only.
    make_config: configuration of a variant: dataset, loss and optimizer to go on with.
    make_first_stage: that of the first stage, for systems that have one.
    image_size: of the network's pictures, where it is not the usual one.
    key: entry of a PyTorch file to take, where it has several.
    more: further files, for systems whose weights come in parts.
  """
  if system in weights.FILES:
    if workdir is not None or key is not None or image_size is not None:
      raise UserError(f'{system} is taken as its files are; leave out --workdir, --key and --image-size')
    print(json.dumps(weights.register(system, [file, *more]), indent=2))
    return
  if system not in WORKDIRS:
    known = ', '.join([*WORKDIRS, *weights.FILES])
    raise UserError(f'unknown system {system!r}; checkpoints can be converted for {known}')
  if workdir is None:
    raise UserError(f'a {system} checkpoint becomes a workdir; say which one to make: --workdir')
  if more:
    raise UserError(f'unexpected file {more[0]}; a {system} checkpoint is one file')
  way, file, workdir = WORKDIRS[system], Path(file), Path(workdir)
  found = way.read(file, key)
  module, variables, config = _understood(way, found, make_config, image_size)
  report = {}
  if way.first_stage:
    assert make_first_stage is not None
    beside = Path(f'{workdir}_first_stage')
    _check_free(workdir)
    tensors_beside = way.first_stage(found)
    understood = _understood(WORKDIRS['vqgan'], tensors_beside, make_first_stage, config.model.image_size)
    _write('vqgan', file, tensors_beside, beside, *understood)
    config.first_stage.workdir = str(beside)
    del variables['params']['first_stage']
    report['first_stage'] = str(beside)
  report |= _write(system, file, found, workdir, module, variables, config)
  print(json.dumps(report, indent=2))
  print(f'written: {workdir}; try: {way.try_next.format(workdir)}')


def _understood(
  way: Workdir, found: Tensors, make_config: Callable[[str], ConfigDict], image_size: int | None
) -> tuple[Any, dict[str, Any], ConfigDict]:
  """The module that a file's tensors are of, its variables, and the configuration of a run of it."""
  options = {'image_size': image_size} if way.needs_size else {}
  module, variables = from_reference(way.network, found, **options, **(way.options or {}))
  config = make_config(way.variant(module))
  with config.unlocked():
    way.configure(config, module)
    if image_size is not None:
      config.model.image_size = image_size
  if 'ema' in variables and not config.ema_decay:
    raise UserError('this checkpoint has an averaged copy and the configuration none; leave config.ema_decay as it is')
  return module, variables, config


def _check_free(workdir: Path) -> None:
  if (workdir / workdirs.CHECKPOINT_FOLDER).exists():
    raise UserError(f'{workdir} already holds checkpoints; choose another --workdir')


def _write(
  system: str, file: Path, found: Tensors, workdir: Path, module: Any, variables: dict[str, Any], config: ConfigDict
) -> Report:
  """Makes the workdir; returns its report."""
  way = WORKDIRS[system]
  task = engine_for(config, training=False).task
  with workdirs.locked(workdir):
    _check_free(workdir)
    state = _started(task, config, way.where, variables)
    workdirs.open_run(workdir, config)
    with Checkpoints(workdir) as checkpoints:
      checkpoints.save(0, state, next_batch=0, fingerprint=None)
    with file.open('rb') as stream:
      digest = hashlib.file_digest(stream, 'sha256').hexdigest()
    report = {
      'system': system,
      'file': file.name,
      'sha256': digest,
      'tensors': len(found),
      'numbers': sum(int(tensor.size) for tensor in found.values()),
      'parameters': count(variables['params']),
      'image_size': config.model.image_size,
      **way.about(module),
      'parity': _parity(way, way.canonical(found), state, variables),
    }
    workdirs.write_atomically(workdir / 'convert.json', json.dumps(report, indent=2) + '\n')
  return report


def _started(task: Task, config: ConfigDict, where: tuple[str, ...], variables: Mapping[str, Any]) -> TrainState:
  """The task's first state with these variables at `where`.

  The averaged copy, where the task keeps one, has theirs or, where they have none, the same.
  """
  parts = {'params': variables['params']}
  if 'batch_stats' in variables:
    parts['model_state'] = variables['batch_stats']
  if config.ema_decay:
    parts['ema'] = {**variables['params'], **variables.get('ema', {})}

  @jax.jit
  def init(key: jax.Array) -> TrainState:
    state = task.init(key)
    # What is not asked for is not drawn either, and of a large network neither time nor memory is spent on it.
    return state.replace(**{name: _placed(getattr(state, name), where, None) for name in parts})

  state = init(jax.random.key(config.seed))
  return state.replace(**{name: _placed(getattr(state, name), where, part) for name, part in parts.items()})


def _placed(tree: Any, where: tuple[str, ...], part: Any) -> Any:
  """`tree` with what lies at `where` replaced by `part`, as device arrays."""
  if not where:
    return jax.tree.map(jnp.asarray, part)
  return {**tree, where[0]: _placed(tree[where[0]], where[1:], part)}


def _parity(way: Workdir, found: Tensors, state: TrainState, collections: Iterable[str]) -> Report:
  """Takes the saved state's collections back to public names and compares with the file."""
  trees = {'params': state.params, 'batch_stats': state.model_state, 'ema': state.ema}
  variables = {name: functools.reduce(operator.getitem, way.where, trees[name]) for name in collections}
  back = to_reference(way.network, jax.device_get(variables))
  differences = [float(np.abs(back[name] - tensor.astype(np.float32)).max(initial=0)) for name, tensor in found.items()]
  return {
    'tensors compared': len(differences),
    'largest difference': max(differences, default=0.0),
    'network': f'held to stored outputs of the public code: tests/goldens/{way.goldens}',
  }
