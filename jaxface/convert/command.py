"""`jaxface convert`: a public checkpoint file becomes a workdir that evaluate, reconstruct, sample and train accept."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxface import workdir as workdirs
from jaxface.checkpoint import Checkpoints
from jaxface.convert import from_reference, keras_h5
from jaxface.errors import UserError
from jaxface.models.vae import FaceMaskVAE
from jaxface.runs import engine_for
from jaxface.state import count

READERS = {'vae': keras_h5.read}


def _vae_config(config: ConfigDict, module: FaceMaskVAE) -> ConfigDict:
  with config.unlocked():
    for name in ('image_size', 'latent_dim', 'encoder_widths', 'decoder_widths', 'mask_widths', 'sampling'):
      config.model[name] = getattr(module, name)
  config.model.masks = bool(module.mask_widths)
  return config


def convert(
  system: str, file: Path, workdir: Path, *, image_size: int | None, make_config: Callable[[str], ConfigDict]
) -> None:
  """Reads `file`, writes a workdir with its weights as checkpoint 0 and a report, convert.json.

  `make_config(variant)` gives the rest of the configuration: dataset, loss and optimizer to go on with.
  """
  if system not in READERS:
    raise UserError(f'unknown system {system!r}; checkpoints can be converted for {", ".join(READERS)}')
  tensors = READERS[system](file)
  module, variables = from_reference(system, tensors, image_size=image_size)
  config = _vae_config(make_config('mask_ssim_l2' if module.mask_widths else 'nomask_ssim_l2'), module)
  engine = engine_for(config)
  with workdirs.locked(workdir):
    if (workdir / workdirs.CHECKPOINT_FOLDER).exists():
      raise UserError(f'{workdir} already holds checkpoints; choose another --workdir')
    state = engine.init()
    state = state.replace(
      params=jax.tree.map(jnp.asarray, variables['params']),
      model_state=jax.tree.map(jnp.asarray, variables['batch_stats']),
    )
    workdirs.open_run(workdir, config)
    with Checkpoints(workdir) as checkpoints:
      checkpoints.save(0, engine.to_saved(state), next_batch=0, fingerprint=None)
    report = {
      'system': system,
      'file': file.name,
      'sha256': hashlib.sha256(file.read_bytes()).hexdigest(),
      'tensors': len(tensors),
      'numbers': sum(int(tensor.size) for tensor in tensors.values()),
      'parameters': count(state.params),
      'image_size': module.image_size,
      'mask_decoder': bool(module.mask_widths),
    }
    workdirs.write_atomically(workdir / 'convert.json', json.dumps(report, indent=2) + '\n')
  print(json.dumps(report, indent=2))
  print(f'written: {workdir}; try: jaxface reconstruct --workdir {workdir} --images PHOTOS --out grid.png')
