"""What the diffusion systems share: the denoising step, the averaged copy, drawing pictures, what is measured.

A network learns what the noise in x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise is, given what the picture should show; a
sampler goes from noise to a picture by it. What is given is a label map, and in SCA-DM the styles of its parts, too.
"""

# B batch | S picture size | X sides and channels of what is diffused, pictures or latents | K classes

import abc
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from ml_collections import ConfigDict

from jaxface import labels
from jaxface.augment import to_signed, to_unit
from jaxface.diffusion import process, samplers, training
from jaxface.diffusion.schedule import Schedule
from jaxface.errors import UserError
from jaxface.state import PyTree, TrainState, first_state
from jaxface.tasks.gradients import update
from jaxface.tasks.task import Batch, Compared, Metrics, apart, coloured, row_keys, together

# The class of a pixel that shows nothing in particular: what the unconditional branch of guidance is given everywhere.
NOTHING = labels.NUM_CLASSES

# Pictures in evaluation, by protocol: what is drawn after.
MASK_ONLY = 'mask only'

# Noise levels at which evaluation measures each picture's loss, spread evenly.
_LEVELS = 4


@dataclasses.dataclass(frozen=True)
class Objective:
  """What the network predicts, and how its errors count.

  Attributes:
    kind: 'eps', 'x0' or 'v', see `jaxface.diffusion.process`.
    weighting: of the timesteps, see `jaxface.diffusion.training.loss_weights`.
    gamma: of 'min_snr'.
    distance: 'l2' or 'l1'.
  """

  kind: str = 'eps'
  weighting: str = 'simple'
  gamma: float = 5.0
  distance: str = 'l2'

  def __post_init__(self) -> None:
    process.check_kind(self.kind)
    for what, name, known in (
      ('weighting', self.weighting, training.WEIGHTINGS),
      ('distance', self.distance, training.DISTANCES),
    ):
      if name not in known:
        raise UserError(f'unknown {what} {name!r}; choose from {", ".join(known)}')

  def row_losses(self, schedule: Schedule, output: jax.Array, rows: Mapping[str, jax.Array]) -> jax.Array:
    """Loss of each row [B], of a network's output [B, X]; `rows` have 'x0', 'noise' and 't'."""
    wanted = process.target(self.kind, schedule, rows['x0'], rows['noise'], rows['t'])
    weights = training.loss_weights(self.weighting, schedule, self.kind, gamma=self.gamma)
    return jnp.asarray(weights, jnp.float32)[rows['t']] * training.row_errors(output, wanted, self.distance)


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How pictures are drawn.

  Attributes:
    plan: the sampler's steps.
    guidance: classifier-free guidance (Ho & Salimans 2022); 1 for none.
    clip: hold what a step takes the picture to be within [-1, 1]; for diffusions of pictures.
    cached: compute once what does not change from step to step; off only to measure what that saves.
    variance: of the noise that 'ddpm' draws, see `samplers.ddpm`; what the network was trained for.
  """

  plan: samplers.Plan = dataclasses.field(repr=False, compare=False)
  guidance: float = 1.0
  clip: bool = False
  cached: bool = True
  variance: str = 'small'


@dataclasses.dataclass(frozen=True)
class DiffusionTask(abc.ABC):
  """Training, evaluation and drawing of a diffusion; what is diffused and what is given is the subclass's.

  Attributes:
    unet: the network; its methods are those of `jaxface.models.scadm.SCAUNet`.
    schedule: how noise grows with t.
    objective: what is learned.
    sampling: how evaluation draws.
    image_size: side S of pictures.
    drop_rate: share of training rows that are given nothing, so that guidance has something to lead away from.
    ema_decay: of the averaged copy; 0 for no copy.
    ema_warmup: average over fewer updates at first, see `training.ema_decay`.
    frozen: see `Task`.
  """

  unet: nn.Module
  schedule: Schedule = dataclasses.field(repr=False, compare=False)
  objective: Objective
  sampling: Sampling
  optimizer: optax.GradientTransformation
  image_size: int
  drop_rate: float = 0.0
  accumulate_steps: int = 1
  ema_decay: float = 0.0
  ema_warmup: bool = True
  axis_name: str | None = None
  frozen: PyTree = dataclasses.field(default=None, compare=False, repr=False, kw_only=True)

  batch_fields = ('image', 'label')
  optional_fields = ()
  given = ('input', 'label map')

  @property
  @abc.abstractmethod
  def x_shape(self) -> tuple[int, int, int]:
    """X, the shape of what is diffused."""

  @abc.abstractmethod
  def init_networks(self, key: jax.Array) -> dict[str, PyTree]:
    """Fresh parameters of what is trained; the network's under 'unet'."""

  @abc.abstractmethod
  def rows(self, state: TrainState, batch: Batch, keys: jax.Array) -> dict[str, jax.Array]:
    """What training rows are made of, each by its key [B]: 'x0' [B, X], 'label', and what else `given_rows` reads."""

  @abc.abstractmethod
  def given_rows(self, params: PyTree, rows: Mapping[str, jax.Array]) -> Any:
    """What the network is given with training rows, with nothing where 'drop' [B] is true."""

  @abc.abstractmethod
  def modes(self, state: TrainState, image: jax.Array, label: jax.Array) -> dict[str, Any]:
    """What to draw pictures after, by protocol: {protocol: conditioning}; pictures [B, S, S, 3] in [-1, 1]."""

  @abc.abstractmethod
  def nothing(self) -> Any:
    """The conditioning of guidance's unconditional branch, of batch 1."""

  @abc.abstractmethod
  def encode(self, state: TrainState, image: jax.Array) -> jax.Array:
    """Pictures [B, S, S, 3] in [-1, 1] -> what is diffused [B, X]."""

  @abc.abstractmethod
  def decode(self, state: TrainState, x0: jax.Array) -> jax.Array:
    """The way back, [B, X] -> [B, S, S, 3], nominally in [-1, 1]."""

  def learned(self, output: jax.Array) -> process.Prediction | jax.Array:
    """A network's output [B, ...] as a sampler takes it, the noise not yet told from what else may be predicted."""
    return output

  def init(self, key: jax.Array) -> TrainState:
    """A fresh state."""
    params = self.init_networks(key)
    return first_state(params, None, self.optimizer.init(params), ema=params if self.ema_decay else None)

  def train_step(self, state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
    """One update; each row's timestep, noise, and whether it is given nothing, are drawn by its own key."""
    keys = row_keys(key, batch)
    rows = self.rows(state, batch, _fold(keys, 0)) | jax.vmap(self._drawn)(_fold(keys, 1))
    return update(
      state,
      rows,
      self._loss,
      self.optimizer,
      accumulate_steps=self.accumulate_steps,
      ema_decay=training.ema_decay(state.step + 1, self.ema_decay) if self.ema_warmup else self.ema_decay,
      axis_name=self.axis_name,
    )

  def _drawn(self, key: jax.Array) -> dict[str, jax.Array]:
    t_key, noise_key, drop_key = jax.random.split(key, 3)
    return {
      't': jax.random.randint(t_key, (), 0, len(self.schedule)),
      'noise': jax.random.normal(noise_key, self.x_shape, jnp.float32),
      'drop': jax.random.bernoulli(drop_key, self.drop_rate),
    }

  def _loss(self, params: PyTree, _: None, rows: Mapping[str, jax.Array]) -> tuple[jax.Array, tuple[None, Metrics]]:
    terms = self.terms(params, rows, self.given_rows(params, rows))
    loss = sum(terms.values())
    return loss, (None, {'loss': loss, **terms})

  def terms(self, params: PyTree, rows: Mapping[str, jax.Array], given: Any) -> dict[str, jax.Array]:
    """The terms of the loss of training rows, scalars."""
    output = self.apply(params, self.noisy(rows), rows['t'], given)
    return {'denoising': self.objective.row_losses(self.schedule, output, rows).mean()}

  def noisy(self, rows: Mapping[str, jax.Array]) -> jax.Array:
    """x_t of rows with 'x0', 'noise' and 't'."""
    return process.add_noise(self.schedule, rows['x0'], rows['noise'], rows['t'])

  def apply(self, params: PyTree, *arguments: Any, **options: Any) -> Any:
    """A method of the network, by default its call."""
    return self.unet.apply({'params': params['unet']}, *arguments, **options)

  def draw(
    self, state: TrainState, given: Any, keys: jax.Array, *, sampling: Sampling | None = None, noise=None
  ) -> jax.Array:
    """Pictures after conditioning of B rows, each by its own key [B]: float32 [B, S, S, 3] in [0, 1].

    Args:
      given: what `modes` or the subclass's own functions make.
      sampling: instead of the task's own.
      noise: [B, X] to start from, instead of what the keys draw.
    """
    sampling = sampling or self.sampling
    params, size = state.params, self.x_shape[:2]
    timesteps = jnp.asarray(sampling.plan.timesteps)
    networks_times = self.apply(params, timesteps, method='times') if sampling.cached else timesteps[:, None]

    def denoiser(given: Any) -> samplers.Denoise:
      if sampling.cached:
        given = self.apply(params, given, size, method='cache')

      def denoise(x: jax.Array, time: dict[str, Any]) -> jax.Array | process.Prediction:
        predicted = self.learned(self.apply(params, x, time['network'], given))
        if isinstance(predicted, process.Prediction):
          return predicted
        return process.eps_from(self.objective.kind, self.schedule, x, predicted, time['t'])

      return denoise

    denoise = denoiser(given)
    if sampling.guidance != 1:
      denoise = samplers.guided(denoise, denoiser(self.nothing()), sampling.guidance)
    x0 = samplers.sample(
      sampling.plan,
      denoise,
      samplers.draw_noise(keys, self.x_shape) if noise is None else noise,
      times={'network': networks_times, 't': timesteps[:, None]},
      keys=keys,
      clip=sampling.clip,
    )
    return to_unit(self.decode(state, x0))

  def _draw_all(self, state: TrainState, modes: Mapping[str, Any], keys: jax.Array) -> dict[str, jax.Array]:
    """Pictures after each of several conditionings, with the same noise, in one batch."""
    pictures = self.draw(state, _all_rows(modes), together(*[keys] * len(modes)))
    return dict(zip(modes, apart(pictures, len(modes)), strict=True))

  @property
  def protocol(self) -> dict[str, str]:
    """What the names of the metrics leave open."""
    sampling = self.sampling
    steps = len(sampling.plan.timesteps)
    return {
      'loss': f'mean square error of the predicted {self.objective.kind}, {_LEVELS} noise levels a picture',
      'pictures': f'{self.image_size}x{self.image_size}, [0, 1], {steps} steps, guidance {sampling.guidance:g}',
      MASK_ONLY: 'drawn after the label map alone',
    }

  def eval_step(self, state: TrainState, batch: Batch, key: jax.Array) -> Metrics:
    """The loss per example [B] by protocol, at the same noise levels and with the same noise whenever it is asked."""
    del key
    image = to_signed(batch['image'])
    label = batch['label'].astype(jnp.int32)
    x0, keys = self.encode(state, image), content_keys(label)
    modes = self.modes(state, image, label)
    given = _all_rows(modes)

    def at_level(total: jax.Array, level: jax.Array) -> tuple[jax.Array, None]:
      rows = jax.vmap(self._drawn)(_fold(keys, level))
      rows |= {'x0': x0, 't': (rows['t'] + level * len(self.schedule)) // _LEVELS}
      rows = {name: together(*[values] * len(modes)) for name, values in rows.items()}
      output = self.apply(state.params, self.noisy(rows), rows['t'], given)
      return total + self._evaluated(output, rows), None

    total, _ = jax.lax.scan(at_level, jnp.zeros(len(modes) * len(label)), jnp.arange(_LEVELS))
    of_modes = zip(modes, apart(total / _LEVELS, len(modes)), strict=True)
    return {f'{mode}/loss': losses for mode, losses in of_modes}

  def _evaluated(self, output: jax.Array, rows: Mapping[str, jax.Array]) -> jax.Array:
    predicted = self.learned(output)
    predicted = predicted.eps if isinstance(predicted, process.Prediction) else predicted
    wanted = process.target(self.objective.kind, self.schedule, rows['x0'], rows['noise'], rows['t'])
    return training.row_errors(predicted, wanted)

  def summary(self, means: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The losses by protocol, and their mean as 'loss'."""
    found = {name: float(value) for name, value in means.items()}
    return {'loss': float(np.mean(list(found.values()))), **found}

  def compared(self, state: TrainState, batch: Batch) -> Compared:
    """Pictures drawn in every mode: against the true ones where the style is theirs, and against the label maps."""
    image, label = to_signed(batch['image']), batch['label'].astype(jnp.int32)
    modes, keys = self.modes(state, image, label), content_keys(label)
    made, again = self._draw_all(state, modes, keys), self._draw_all(state, modes, _fold(keys, 1))
    true = (image + 1) / 2
    return Compared(
      pairs={mode: (true, picture) for mode, picture in {**made, **self.coded(state, image)}.items()},
      real=true,
      sets=made,
      repeats={mode: (made[mode], again[mode]) for mode in modes},
      asked={'true pictures': (label, true), **{mode: (label, picture) for mode, picture in made.items()}},
    )

  def coded(self, state: TrainState, image: jax.Array) -> dict[str, jax.Array]:
    """What `encode` and `decode` alone make of pictures in [-1, 1], by protocol, [0, 1]: what drawing can reach."""
    del state, image
    return {}

  def render(self, state: TrainState, batch: Batch, key: jax.Array) -> Metrics:
    """Columns to look at: what is given, and what is drawn after it in every mode."""
    del key
    image, label = to_signed(batch['image']), batch['label'].astype(jnp.int32)
    drawn = self._draw_all(state, self.shown(state, image, label), content_keys(label))
    return {'input': (image + 1) / 2, 'label map': coloured(label), **self.coded(state, image), **drawn}

  def shown(self, state: TrainState, image: jax.Array, label: jax.Array) -> dict[str, Any]:
    """As `modes`, what `render` draws after."""
    return self.modes(state, image, label)


def _all_rows(modes: Mapping[str, Any]) -> Any:
  """The conditionings of all modes as one, rows as `together` has them."""
  return jax.tree.map(together, *modes.values())


def _fold(keys: jax.Array, number: jax.Array | int) -> jax.Array:
  """Each key [B] with a number folded in."""
  return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def content_keys(label: jax.Array) -> jax.Array:
  """A random key for every label map [B, H, W], by what it shows: the same noise in any batch."""

  def one(label: jax.Array) -> jax.Array:
    # A sum modulo 2^32 that another class at any pixel changes.
    odd = 2 * jnp.arange(label.size, dtype=jnp.uint32) + 1
    mixed = jnp.sum((label.ravel().astype(jnp.uint32) + 1) * odd * jnp.uint32(2654435761), dtype=jnp.uint32)
    return jax.random.fold_in(jax.random.key(0), mixed)

  return jax.vmap(one)(label)


def make_sampling(config: ConfigDict, schedule: Schedule, *, clip: bool = False, variance: str = 'small') -> Sampling:
  """What the `sampling` part of an experiment describes; steps 0 are all timesteps."""
  if not 0 <= config.guidance < math.inf:
    raise UserError(f'sampling.guidance={config.guidance}; 1 is none, more leads further: give at least 0')
  plan = samplers.make_plan(config.name, schedule, config.steps or None, eta=config.eta, variance=variance)
  return Sampling(plan, config.guidance, clip, variance=variance)
