"""SDM (Wang et al., 2022): a diffusion of pictures themselves, after a label map; SCA-DM's rival."""

# B batch | S picture size | K classes

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxface.augment import Zoom, to_float
from jaxface.diffusion import process
from jaxface.diffusion.schedule import make_schedule
from jaxface.diffusion.variational import variational_bound
from jaxface.errors import UserError
from jaxface.models.sdm import SDMUNet, condition_map
from jaxface.optimizers import make_optimizer
from jaxface.state import PyTree, TrainState
from jaxface.tasks.diffusion import MASK_ONLY, NOTHING, DiffusionTask, Objective, make_sampling
from jaxface.tasks.task import Batch, compute_dtype


@dataclasses.dataclass(frozen=True)
class SdmTask(DiffusionTask):
  """Training and use of SDM: the network predicts the noise and how much the next step should draw.

  The public code mirrors label maps without exchanging left and right; here they change places.

  Attributes:
    augment: what of a picture a step sees.
  """

  augment: Zoom = dataclasses.field(default_factory=Zoom)

  columns = ('input', 'label map', MASK_ONLY)
  comparison = (MASK_ONLY,)

  @property
  def x_shape(self) -> tuple[int, int, int]:
    """A picture's."""
    return self.image_size, self.image_size, 3

  def init_networks(self, key: jax.Array) -> dict[str, PyTree]:
    """The UNet."""
    return {
      'unet': self.unet.init(key, jnp.zeros((1, *self.x_shape)), jnp.zeros(1, jnp.int32), self.nothing())['params']
    }

  def rows(self, state: TrainState, batch: Batch, keys: jax.Array) -> dict[str, jax.Array]:
    """Pictures and label maps."""
    seen = self.augment({'image': to_float(batch['image']), 'label': batch['label']}, keys)
    return {'x0': 2 * seen['image'] - 1, 'label': seen['label'].astype(jnp.int32)}

  def given_rows(self, params: PyTree, rows: Mapping[str, jax.Array]) -> jax.Array:
    """Label maps as the network takes them."""
    del params
    return condition_map(jnp.where(rows['drop'][:, None, None], NOTHING, rows['label']))

  def terms(self, params: PyTree, rows: Mapping[str, jax.Array], given: jax.Array) -> dict[str, jax.Array]:
    """The squared error of the noise, and the variational bound, which trains the variance alone."""
    x = self.noisy(rows)
    predicted = self.learned(self.apply(params, x, rows['t'], given))
    return {
      'denoising': self.objective.row_losses(self.schedule, predicted.eps, rows).mean(),
      'variance': variational_bound(self.schedule, rows['x0'], x, predicted, rows['t']).mean(),
    }

  def learned(self, output: jax.Array) -> process.Prediction:
    """The noise, and the fraction of the variance."""
    return process.split_prediction(output)

  def modes(self, state: TrainState, image: jax.Array, label: jax.Array) -> dict[str, jax.Array]:
    """After the label map; SDM knows no styles."""
    del state, image
    return {MASK_ONLY: condition_map(label)}

  def nothing(self) -> jax.Array:
    """A label map of no class anywhere."""
    return condition_map(jnp.full((1, self.image_size, self.image_size), NOTHING, jnp.int32))

  def encode(self, state: TrainState, image: jax.Array) -> jax.Array:
    """Pictures as they are."""
    del state
    return image

  def decode(self, state: TrainState, x0: jax.Array) -> jax.Array:
    """Pictures as they are."""
    del state
    return x0


def make_sdm(config: ConfigDict, axis_name: str | None = None, *, training: bool = True) -> SdmTask:
  """The task that an experiment describes; see experiments/sdm.py."""
  del training  # There is nothing that only the loss needs.
  model = config.model
  if not 0 < config.augment.least <= 1:
    raise UserError(f'augment.least={config.augment.least}; it must be above 0 and at most 1')
  schedule = make_schedule(config.schedule.name, start=config.schedule.start, end=config.schedule.end)
  return SdmTask(
    unet=SDMUNet(
      model_channels=model.channels,
      multipliers=model.multipliers,
      num_blocks=model.num_blocks,
      attention_factors=model.attention_factors,
      head_channels=model.head_channels,
      spade_hidden=model.spade_hidden,
      remat=model.remat,
      dtype=compute_dtype(model.dtype),
    ),
    schedule=schedule,
    objective=Objective(weighting=config.loss.weighting, gamma=config.loss.gamma),
    sampling=make_sampling(config.sampling, schedule, clip=True, variance='learned'),
    optimizer=make_optimizer(config.optimizer, config.total_steps),
    image_size=model.image_size,
    drop_rate=config.loss.drop_rate,
    accumulate_steps=config.accumulate_steps,
    ema_decay=config.ema_decay,
    ema_warmup=config.ema_warmup,
    axis_name=axis_name,
    augment=Zoom(config.augment.least, config.augment.flip),
  )
