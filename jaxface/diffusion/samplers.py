"""Samplers: from noise to a picture, by a network that says what the noise in a noisy picture is.

A sampler is a `Plan`: at which timesteps the network is asked, and the numbers of every step's one rule

    x0   = (x - sigma eps) / signal                          what the network takes the picture to be
    next = from_x x + from_x0 x0 + from_last_x0 (the last step's x0) + scale * noise

so `sample` is a single `lax.scan` for all of them. Plans are numpy: constants of the program that samples.
"""

# B batch | S steps | T timesteps of training | ... sides and channels

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxface.diffusion.process import Prediction
from jaxface.diffusion.schedule import Schedule, respaced, spaced_timesteps
from jaxface.errors import UserError

# (x float32 [B, ...], the step's row of `times`) -> the noise in x [B, ...], or with it the variance's fraction.
Denoise = Callable[[jax.Array, Any], 'jax.Array | Prediction']


class Plan(NamedTuple):
  """A sampler's steps in their order: numpy arrays [S], float64 but for the timesteps."""

  timesteps: np.ndarray  # int32: what the network is asked, from much noise to little.
  signal: np.ndarray  # factors of picture ...
  sigma: np.ndarray  # ... and noise in x before the step.
  from_x: np.ndarray
  from_x0: np.ndarray
  from_last_x0: np.ndarray  # 0 in the first step.
  scale: np.ndarray  # standard deviation of the noise drawn, where the variance's fraction is 0 or none is predicted,
  log_range: np.ndarray  # times exp(log_range * fraction): 0 where the variance isn't learned.

  @property
  def draws(self) -> bool:
    """Whether any step draws noise; otherwise the picture is a function of the noise it starts from."""
    return bool(np.any(self.scale))

  @property
  def learned(self) -> bool:
    """Whether the noise drawn depends on the predicted fraction."""
    return bool(np.any(self.log_range))


class Trajectory(NamedTuple):
  """All steps of a sampler, float32 [S, B, ...]: x after each step, and what the step took the picture to be."""

  x: jax.Array
  x0: jax.Array


def ddim(schedule: Schedule, steps: int | None = None, *, eta: float = 0.0) -> Plan:
  """DDIM (Song et al. 2021, (12)) as the public latent diffusion runs it; `eta` from 0, no noise, to 1, as in DDPM.

  Timesteps 1, 1 + T // steps, ...: public pictures need the offset, and where `steps` does not divide T there come
  some more than asked for (70 of 1000: 72). None: all T. The last step leaves the noise of t = 0.
  """
  total = len(schedule)
  if steps is None or steps == total:
    timesteps = np.arange(total)
  elif 2 <= steps <= total // 2:
    timesteps = 1 + np.arange(0, total - 1, total // steps)
  else:
    raise UserError(f'steps={steps}; ddim takes 2 to {total // 2} of {total} timesteps, or all')
  if not 0 <= eta <= 1:
    raise UserError(f'eta={eta}; it goes from 0 (no noise) to 1 (as much as ddpm)')
  a = schedule.alphas_cumprod[timesteps]
  a_next = np.append(schedule.alphas_cumprod[0], a[:-1])
  scale = eta * np.sqrt((1 - a_next) / (1 - a) * (1 - a / a_next))
  # The rule's eps, written as (x - sqrt(a) x0) / sqrt(1 - a), follows x0 when that is clipped.
  from_x = np.sqrt((1 - a_next - scale**2) / (1 - a))
  return _reversed_plan(timesteps, a, from_x=from_x, from_x0=np.sqrt(a_next) - from_x * np.sqrt(a), scale=scale)


# The variance of DDPM's steps, by name: the posterior's, beta's, or the predicted one between the two.
VARIANCES = ('small', 'large', 'learned')


def ddpm(schedule: Schedule, steps: int | None = None, *, variance: str = 'small') -> Plan:
  """Ancestral sampling (Ho et al. 2020, Algorithm 2); SDM's, with `variance='learned'` and `clip` in `sample`.

  Of `steps` < T, the process that visits only so many timesteps, evenly spaced (Nichol & Dhariwal 2021, 4); None: all.
  The last step draws no noise.
  """
  if variance not in VARIANCES:
    raise UserError(f'unknown variance {variance!r}; choose from {", ".join(VARIANCES)}')
  timesteps = spaced_timesteps(len(schedule), _checked('ddpm', schedule, steps))
  process = respaced(schedule, timesteps)
  log_variance, log_beta = process.posterior_log_variance, np.log(process.betas)
  if variance == 'large':
    log_variance = np.append(log_variance[0], log_beta[1:])
  return _reversed_plan(
    timesteps,
    process.alphas_cumprod,
    from_x=process.posterior_from_x,
    from_x0=process.posterior_from_x0,
    scale=np.append(0.0, np.exp(log_variance[1:] / 2)),
    log_range=(log_beta - log_variance) / 2 if variance == 'learned' else None,
  )


def dpm_solver(schedule: Schedule, steps: int | None = None) -> Plan:
  """DPM-Solver++ (2M), Lu et al. 2022, Algorithm 2: 15 to 25 steps do for what takes DDIM a hundred and more.

  The timesteps are those nearest to even steps of the log signal-to-noise ratio from T-1 to 0, no two the same: the
  solver's error shrinks much faster so than evenly in time. The last step ends at the picture itself, x0 as taken at
  t = 0, and not at the noise of t = 0. None: all timesteps.
  """
  steps = _checked('dpm_solver', schedule, steps)
  ratio = np.log(schedule.signal_to_noise) / 2
  even = np.interp(np.linspace(ratio[0], ratio[-1], steps), ratio[::-1], np.arange(len(schedule))[::-1])
  timesteps = _distinct(np.round(even).astype(np.int32), len(schedule))

  a, ratio = schedule.alphas_cumprod[timesteps], ratio[timesteps]
  # From here on arrays are in rising order of t, so that each step leads to the entry before its own.
  width = np.append(np.inf, ratio[:-1] - ratio[1:])
  past_width = np.append(width[1:], np.inf)
  # A step to the picture itself is infinitely wide, and can only be of first order; so is the first of all.
  past = np.where(np.isinf(width), 0.0, width / (2 * past_width))
  signal_next, sigma_next = np.append(1.0, np.sqrt(a[:-1])), np.append(0.0, np.sqrt(1 - a[:-1]))
  gain = -signal_next * np.expm1(-width)
  return _reversed_plan(
    timesteps,
    a,
    from_x=sigma_next / np.sqrt(1 - a),
    from_x0=gain * (1 + past),
    from_last_x0=-gain * past,
  )


def _distinct(timesteps: np.ndarray, total: int) -> np.ndarray:
  """Rising integers in 0..total-1, moved apart as little as it takes for no two to be the same."""
  order = np.arange(len(timesteps))
  timesteps = np.maximum.accumulate(timesteps - order) + order
  return np.minimum(timesteps, total - len(timesteps) + order)


def _checked(name: str, schedule: Schedule, steps: int | None) -> int:
  steps = len(schedule) if steps is None else steps
  if not 2 <= steps <= len(schedule):
    raise UserError(f'steps={steps}; {name} takes 2 to {len(schedule)}')
  return steps


def _reversed_plan(timesteps: np.ndarray, a: np.ndarray, **rows: np.ndarray | None) -> Plan:
  """From arrays in rising order of t, `a` the alphas_cumprod; those not given are 0."""
  named = {name: values for name, values in rows.items() if values is not None}
  named |= {name: np.zeros(len(a)) for name in ('from_last_x0', 'scale', 'log_range') if name not in named}
  plan = Plan(timesteps.astype(np.int32), np.sqrt(a), np.sqrt(1 - a), **named)
  return Plan(*(values[::-1] for values in plan))


SAMPLERS = {'ddim': ddim, 'ddpm': ddpm, 'dpm_solver': dpm_solver}


def make_plan(
  name: str, schedule: Schedule, steps: int | None = None, *, eta: float = 0.0, variance: str = 'small'
) -> Plan:
  """The plan of the sampler `name` of SAMPLERS in `steps` steps, None for all timesteps.

  `eta` is DDIM's alone, `variance` ('small', 'large' or 'learned') DDPM's.
  """
  if name not in SAMPLERS:
    raise UserError(f'unknown sampler {name!r}; choose from {", ".join(SAMPLERS)}')
  if eta and name != 'ddim':
    raise UserError(f'eta={eta} with the sampler {name}; only ddim has it: leave it at 0')
  options = {'ddim': {'eta': eta}, 'ddpm': {'variance': variance}}.get(name, {})
  return SAMPLERS[name](schedule, steps, **options)


def draw_noise(keys_B: jax.Array, shape: tuple[int, ...], draw: jax.Array | int = 0) -> jax.Array:
  """Standard normal float32 [B, *shape], each row of its own key alone; `draw` 0 is what sampling starts from.

  So a row stays what it is in any batch, at any place in it, and on any number of devices.
  """
  return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, draw), shape, jnp.float32))(keys_B)


def sample(
  plan: Plan,
  denoise: Denoise,
  x: jax.Array,
  *,
  times: Any = None,
  keys: jax.Array | None = None,
  noise: jax.Array | None = None,
  clip: bool = False,
) -> jax.Array:
  """Picture or latent, float32 [B, ...], from the noise `x` of that shape (`draw_noise(keys, shape)`).

  Args:
    denoise: (x [B, ...], time) -> eps or `Prediction`. It may close over traced parameters of the caller's `jit`.
    times: a pytree of arrays [S, ...], of which step i's `denoise` gets row i: what the network makes of all timesteps,
      computed once. By default the timesteps themselves, rows of int32 [1].
    keys: random keys [B]; the noise of step i is `draw_noise(keys, ..., i + 1)`. Plans that draw none need none.
    noise: that noise itself, [S, B, ...], instead of keys.
    clip: whether x0 is held within [-1, 1] in every step.
  """
  return _run(plan, denoise, x, times=times, keys=keys, noise=noise, clip=clip, keep=False)[0]


def trajectory(
  plan: Plan,
  denoise: Denoise,
  x: jax.Array,
  *,
  times: Any = None,
  keys: jax.Array | None = None,
  noise: jax.Array | None = None,
  clip: bool = False,
) -> Trajectory:
  """`sample`, with all that comes between; the last of its `x` is what `sample` returns."""
  return _run(plan, denoise, x, times=times, keys=keys, noise=noise, clip=clip, keep=True)[1]


def _run(
  plan: Plan,
  denoise: Denoise,
  x: jax.Array,
  *,
  times: Any,
  keys: jax.Array | None,
  noise: jax.Array | None,
  clip: bool,
  keep: bool,
) -> tuple[jax.Array, Trajectory | None]:
  if plan.draws and keys is None and noise is None:
    raise UserError('this sampler draws noise in its steps; give `keys` [B], or the noise itself')
  if times is None:
    times = plan.timesteps[:, None]

  def step(carry: tuple[jax.Array, jax.Array], row: tuple) -> tuple[tuple[jax.Array, jax.Array], Trajectory | None]:
    x, last_x0 = carry
    i, rule, time, drawn = row
    prediction = denoise(x, time)
    x0 = (x - rule.sigma * _eps_of(prediction)) / rule.signal
    if clip:
      x0 = jnp.clip(x0, -1, 1)
    x = rule.from_x * x + rule.from_x0 * x0 + rule.from_last_x0 * last_x0
    if plan.draws:
      drawn = draw_noise(keys, x.shape[1:], i + 1) if drawn is None else drawn
      x = x + rule.scale * _learned_factor(plan, rule, prediction) * drawn
    return (x, x0), Trajectory(x, x0) if keep else None

  x = x.astype(jnp.float32)
  rules = Plan(*(jnp.asarray(values, jnp.float32) for values in plan))
  steps = jnp.arange(len(plan.timesteps), dtype=jnp.int32)
  (x, _), kept = lax.scan(step, (x, jnp.zeros_like(x)), (steps, rules, times, noise))
  return x, kept


def _eps_of(prediction: 'jax.Array | Prediction') -> jax.Array:
  eps = prediction.eps if isinstance(prediction, Prediction) else prediction
  return eps.astype(jnp.float32)


def _learned_factor(plan: Plan, rule: Plan, prediction: 'jax.Array | Prediction') -> 'jax.Array | float':
  if not plan.learned:
    return 1.0
  assert isinstance(prediction, Prediction), 'a learned variance needs a denoise that returns a Prediction'
  return jnp.exp(rule.log_range * prediction.fraction.astype(jnp.float32))


def guided(conditional: Denoise, unconditional: Denoise, scale: float) -> Denoise:
  """Classifier-free guidance (Ho & Salimans 2022): eps = e_u + scale (e_c - e_u), the variance the conditional's.

  A `scale` of 1 asks the conditional network alone.
  """
  if scale == 1:
    return conditional

  def denoise(x: jax.Array, time: Any) -> 'jax.Array | Prediction':
    prediction = conditional(x, time)
    away = _eps_of(unconditional(x, time))
    eps = away + scale * (_eps_of(prediction) - away)
    return prediction._replace(eps=eps) if isinstance(prediction, Prediction) else eps

  return denoise
