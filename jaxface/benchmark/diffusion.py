"""How fast a diffusion denoises and draws, with what is constant over the steps computed once and without."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxface.augment import to_signed
from jaxface.benchmark.meter import Meter, Row, compile_program
from jaxface.benchmark.training import make_engine, random_batch
from jaxface.diffusion import samplers
from jaxface.parallel import Engine
from jaxface.state import TrainState, for_evaluation, size_in_bytes
from jaxface.tasks.diffusion import DiffusionTask

# A CPU would draw for an hour; the steps are all alike.
_CPU_STEPS = 4
_TIMESTEP = 500


class Subject:
  """A diffusion of random weights, what it is to draw after, and a step of its network, conditioning fresh and cached.

  Arrays lie as the engine would have them: parameters by its rules, `rows` pictures at once spread over the devices.
  """

  def __init__(self, config: ConfigDict, devices: Sequence[jax.Device], rows: int):
    self.rows, self.devices, self.dtype = rows, len(devices), config.model.dtype
    self.engine: Engine = make_engine(config, devices)
    self.name = f'{config.task}, {self.dtype}: '
    self.task: DiffusionTask = self.engine.task
    self.state: TrainState = for_evaluation(self.engine.init())
    batch = self.engine.put(random_batch(config, self.engine, rows))
    modes = jax.jit(lambda state, image, label: self.task.modes(state, to_signed(image), label.astype(jnp.int32)))
    self.given = next(iter(modes(self.state, batch['image'], batch['label']).values()))
    self.x = jax.device_put(jax.random.normal(jax.random.key(0), (rows, *self.task.x_shape)), self.engine.rows)
    self.size = 'x'.join(map(str, self.task.x_shape))

  @property
  def unet(self) -> Any:
    """Parameters of the network."""
    return self.state.params['unet']

  def step(self, params: Any, x: jax.Array, t: Any, given: Any) -> jax.Array:
    """The network, conditioned in either form."""
    return self.task.apply({'unet': params}, x, t, given)

  @functools.cached_property
  def fresh_arguments(self) -> tuple[Any, ...]:
    """Of `step`: conditioning as it comes."""
    return self.unet, self.x, jnp.full(1, _TIMESTEP), self.given

  @functools.cached_property
  def cached_arguments(self) -> tuple[Any, ...]:
    """Of `step`: what is constant over the steps computed before."""

    def prepare(params: Any, given: Any) -> tuple[Any, Any]:
      apply = functools.partial(self.task.apply, {'unet': params})
      times = apply(jnp.full(1, _TIMESTEP), method='times')
      return jax.tree.map(lambda leaf: leaf[0], times), apply(given, self.task.x_shape[:2], method='cache')

    return self.unet, self.x, *jax.jit(prepare)(self.unet, self.given)


def denoise_rows(meter: Meter, subject: Callable[[], Subject]) -> Iterator[Row]:
  """Steps of the network, forward and with gradients."""
  yield _denoise_row(meter, subject())
  yield _gradient_row(meter, subject())


def draw_rows(meter: Meter, subject: Callable[[], Subject]) -> Iterator[Row]:
  """Whole drawings."""
  yield _draw_row(meter, subject(), cached=True)
  yield _draw_row(meter, subject(), cached=False)


def _denoise_row(meter: Meter, subject: Subject) -> Row:
  """One step of the network, in turn with its conditioning prepared and fresh."""
  cached, fresh = (
    compile_program(jax.jit(subject.step), *arguments, devices=subject.devices)
    for arguments in (subject.cached_arguments, subject.fresh_arguments)
  )
  row = meter.row_in_turn(
    f'{subject.name}one step of the network on {subject.size}, conditioning cached; in turn with fresh',
    lambda: cached.run(*subject.cached_arguments),
    lambda: fresh.run(*subject.fresh_arguments),
    peer='fresh',
    images=subject.rows,
    program=cached,
    dtype=subject.dtype,
  )
  return row | {
    'fresh_model_tflop': fresh.tflop,
    'fresh_memory_gib_per_device': fresh.memory_gib,
    'cache_mib': size_in_bytes(subject.cached_arguments[2:]) / 2**20,
  }


def _gradient_row(meter: Meter, subject: Subject) -> Row:
  """Forward and backward, conditioning fresh."""

  def loss(params: Any, *rest: Any) -> jax.Array:
    return jnp.square(subject.step(params, *rest)).mean()

  program = compile_program(jax.jit(jax.grad(loss)), *subject.fresh_arguments, devices=subject.devices)
  return meter.row(
    f'{subject.name}forward and backward of the network on {subject.size}',
    lambda: program.run(*subject.fresh_arguments),
    images=subject.rows,
    program=program,
    dtype=subject.dtype,
  )


def _draw_row(meter: Meter, subject: Subject, *, cached: bool) -> Row:
  """Pictures drawn, from noise to the decoded picture; on a CPU in the first few steps only."""
  task = subject.task
  plan = task.sampling.plan
  if jax.default_backend() == 'cpu':
    plan = samplers.Plan(*(values[:_CPU_STEPS] for values in plan))
  sampling = dataclasses.replace(task.sampling, plan=plan, cached=cached)
  keys = jax.device_put(jax.random.split(jax.random.key(0), subject.rows), subject.engine.rows)
  draw = jax.jit(lambda state, given, keys: task.draw(state, given, keys, sampling=sampling))
  program = compile_program(draw, subject.state, subject.given, keys, devices=subject.devices)
  steps = len(plan.timesteps)
  way = 'what is constant computed once' if cached else 'everything in every step'
  return meter.row(
    f'{subject.name}draw, {steps} steps and decoding, guidance {sampling.guidance:g}, {way}',
    lambda: program.run(subject.state, subject.given, keys),
    images=subject.rows,
    program=program,
    dtype=subject.dtype,
    steps=steps,
  )
