"""How fast a diffusion denoises and draws, with what is constant over the steps computed once and without."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxface.diffusion import samplers
from jaxface.state import TrainState, size_in_bytes
from jaxface.tasks.diffusion import DiffusionTask
from jaxface.timing import cost, time_in_turn, time_repeatedly

Row = dict[str, Any]

# A CPU would draw for an hour; the steps are all alike.
_CPU_STEPS = 4
_TIMESTEP = 500


def denoise_row(task: DiffusionTask, state: TrainState, given: Any, rows: int, seconds: float) -> Row:
  """One step of the network, in turn with its conditioning fresh and prepared."""
  params, x, t = state.params['unet'], _noise(task, rows), jnp.full(1, _TIMESTEP)

  def prepare(params: Any, given: Any) -> tuple[Any, Any]:
    times = task.apply({'unet': params}, t, method='times')
    return jax.tree.map(lambda leaf: leaf[0], times), task.apply(
      {'unet': params}, given, task.x_shape[:2], method='cache'
    )

  prepared = jax.jit(prepare)(params, given)
  step = jax.jit(lambda params, x, t, given: task.apply({'unet': params}, x, t, given))
  fresh, cached = step.lower(params, x, t, given).compile(), step.lower(params, x, *prepared).compile()
  fresh_seconds, cached_seconds = time_in_turn(
    lambda: fresh(params, x, t, given), lambda: cached(params, x, *prepared), seconds
  )
  fresh_cost, cached_cost = cost(fresh, 1), cost(cached, 1)
  return {
    'timed': f'one step of the network on {_size(task)}, conditioning fresh and cached in turn',
    'fresh_seconds': fresh_seconds,
    'cached_seconds': cached_seconds,
    'times_as_fast_cached': fresh_seconds / cached_seconds,
    'fresh_tflop': fresh_cost['model_tflop'],
    'cached_tflop': cached_cost['model_tflop'],
    'fresh_memory_gib': fresh_cost.get('memory_gib_per_device'),
    'cached_memory_gib': cached_cost.get('memory_gib_per_device'),
    'cache_mib': size_in_bytes(prepared) / 2**20,
  }


def gradient_row(task: DiffusionTask, state: TrainState, given: Any, rows: int, seconds: float) -> Row:
  """Forward and backward, conditioning fresh."""
  params, x = state.params['unet'], _noise(task, rows)

  def loss(params: Any, x: jax.Array, given: Any) -> jax.Array:
    return jnp.square(task.apply({'unet': params}, x, jnp.full(1, _TIMESTEP), given)).mean()

  compiled = jax.jit(jax.grad(loss)).lower(params, x, given).compile()
  per_call, calls = time_repeatedly(lambda: compiled(params, x, given), seconds)
  found = cost(compiled, 1)
  return {
    'timed': f'forward and backward of the network on {_size(task)}',
    'seconds': per_call,
    'model_tflop': found['model_tflop'],
    'memory_gib': found.get('memory_gib_per_device'),
    'steps_timed': calls,
  }


def draw_row(task: DiffusionTask, state: TrainState, given: Any, rows: int, seconds: float, *, cached: bool) -> Row:
  """Pictures drawn, from noise to the decoded picture; on a CPU of the first few steps only."""
  plan = task.sampling.plan
  if jax.default_backend() == 'cpu':
    plan = samplers.Plan(*(values[:_CPU_STEPS] for values in plan))
  sampling = dataclasses.replace(task.sampling, plan=plan, cached=cached)
  keys = jax.random.split(jax.random.key(0), rows)
  draw = jax.jit(lambda state, given, keys: task.draw(state, given, keys, sampling=sampling))
  compiled = draw.lower(state, given, keys).compile()
  per_call, calls = time_repeatedly(lambda: compiled(state, given, keys), seconds)
  steps = len(plan.timesteps)
  way = 'what is constant computed once' if cached else 'everything in every step'
  return {
    'timed': f'{steps} steps and decoding, guidance {sampling.guidance:g}, {way}',
    'seconds_per_step': per_call / steps,
    'images_per_second': rows / per_call,
    'memory_gib': cost(compiled, 1).get('memory_gib_per_device'),
    'steps_timed': calls * steps,
  }


def _noise(task: DiffusionTask, rows: int) -> jax.Array:
  return jax.random.normal(jax.random.key(0), (rows, *task.x_shape))


def _size(task: DiffusionTask) -> str:
  return 'x'.join(map(str, task.x_shape))
