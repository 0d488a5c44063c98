"""The frozen autoencoder between pictures and the latents that a diffusion runs in."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxface.errors import UserError
from jaxface.meshes import on_host
from jaxface.models.vqgan import VQGAN
from jaxface.processes import giving_up_together
from jaxface.state import PyTree
from jaxface.tasks.autoencoder import make_vqgan
from jaxface.untrained import untrained


@dataclasses.dataclass(frozen=True)
class FirstStage:
  """Pictures [B, S, S, 3] in [-1, 1] to latents [B, s, s, C] and back; the parameters are given with every call.

  Attributes:
    model: the autoencoder.
    scale: factor of the latents, so that their standard deviation is near 1 (Rombach et al. 2022, appendix G; the
      published systems have 1).
  """

  model: VQGAN
  scale: float = 1.0

  def encode(self, params: PyTree, image: jax.Array) -> jax.Array:
    """Latents before quantisation, float32."""
    return self.scale * self.model.apply({'params': params}, image, method='encode').astype(jnp.float32)

  def decode(self, params: PyTree, latent: jax.Array) -> jax.Array:
    """Pictures, nominally in [-1, 1] and not clipped, of latents that are quantised first."""
    return self.model.apply({'params': params}, latent / self.scale, method='decode').astype(jnp.float32)

  def latent_shape(self, image_size: int) -> tuple[int, int, int]:
    """(s, s, C)."""
    side = image_size // self.model.factor
    return side, side, self.model.latent_channels


def load_first_stage(config: ConfigDict, image_size: int, dtype: jnp.dtype) -> tuple[FirstStage, PyTree]:
  """The autoencoder that the `first_stage` part of an experiment names, and its parameters, numpy.

  Keys: `workdir` (of a run of the task 'autoencoder'; 'random' is one of the published size that was never trained, for
  measurements), `checkpoint` and `scale`. Raises UserError where there is none, or it does not fit pictures of
  `image_size`.
  """
  if not config.workdir:
    raise UserError(
      'first_stage.workdir is empty; train one (`jaxface train --config experiments/vqgan.py:published --workdir '
      "runs/vqgan`), or `jaxface convert vqgan`, and give its workdir ('random': never trained, to measure speed)"
    )
  if config.workdir == 'random':
    model = VQGAN(**config.random, dtype=dtype)
    side = 16 * model.factor
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))
    params = untrained(shapes['params'])
  else:
    model, params = _trained(Path(config.workdir), config.checkpoint, dtype)
  if image_size % model.factor:
    raise UserError(f'model.image_size={image_size} must be a multiple of {model.factor}, for the first stage')
  return FirstStage(model, config.scale), params


def _trained(workdir: Path, checkpoint: str, dtype: jnp.dtype) -> tuple[VQGAN, PyTree]:
  from jaxface.runs import load_run  # Which imports all tasks.
  from jaxface.workdir import read_config

  with giving_up_together():
    if not workdir.is_dir():
      raise UserError(f'first_stage.workdir={workdir} does not exist; give the workdir of a trained autoencoder')
    task = read_config(workdir).task
    if task != 'autoencoder':
      raise UserError(f'first_stage.workdir={workdir} is a run of the task {task!r}; it must be of autoencoder')
  run = load_run(workdir, checkpoint)
  params = on_host(run.state.params['generator'])
  return make_vqgan(run.config.model).clone(dtype=dtype), params
