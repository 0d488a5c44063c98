"""Noise schedules: how much noise a picture holds at each timestep, and what follows from that.

x_t = sqrt(alphas_cumprod[t]) x_0 + sqrt(1 - alphas_cumprod[t]) noise, with t = 0..T-1 from little noise to little else.
Names are those of Ho et al. 2020 ("DDPM") and of the public code.
"""

# T timesteps of training | K timesteps kept of them | B batch

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxface.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
  """The forward process. All arrays are numpy float64 [T]: `at` reads them inside a program, in float32."""

  betas: np.ndarray  # variance of the noise that timestep t adds, in (0, 1).

  def __len__(self) -> int:
    """T."""
    return len(self.betas)

  @functools.cached_property
  def alphas_cumprod(self) -> np.ndarray:
    """Share of x_0's variance that is left in x_t: the product of 1 - beta, falling towards 0."""
    return np.cumprod(1 - self.betas)

  @functools.cached_property
  def alphas_cumprod_prev(self) -> np.ndarray:
    """`alphas_cumprod` one timestep nearer to the picture; 1 for t = 0."""
    return np.append(1.0, self.alphas_cumprod[:-1])

  @functools.cached_property
  def signal_to_noise(self) -> np.ndarray:
    """alphas_cumprod / (1 - alphas_cumprod), a ratio of variances."""
    return self.alphas_cumprod / (1 - self.alphas_cumprod)

  @functools.cached_property
  def posterior_variance(self) -> np.ndarray:
    """Variance of q(x_{t-1} | x_t, x_0); 0 for t = 0. Ho et al. 2020, (7)."""
    return self.betas * (1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

  @functools.cached_property
  def posterior_log_variance(self) -> np.ndarray:
    """Its logarithm, with entry 1 in place of entry 0, which is -inf (Nichol & Dhariwal 2021)."""
    return np.log(np.append(self.posterior_variance[1], self.posterior_variance[1:]))

  @functools.cached_property
  def posterior_from_x0(self) -> np.ndarray:
    """Factor of x_0 in the mean of q(x_{t-1} | x_t, x_0)."""
    return self.betas * np.sqrt(self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

  @functools.cached_property
  def posterior_from_x(self) -> np.ndarray:
    """Factor of x_t in that mean."""
    return (1 - self.alphas_cumprod_prev) * np.sqrt(1 - self.betas) / (1 - self.alphas_cumprod)


def scaled_linear(start: float = 0.0015, end: float = 0.0195, timesteps: int = 1000) -> Schedule:
  """Square roots of the betas evenly from sqrt(start) to sqrt(end): what latent diffusion's code calls 'linear'."""
  return Schedule(np.linspace(start**0.5, end**0.5, timesteps) ** 2)


def linear(start: float = 1e-4, end: float = 0.02, timesteps: int = 1000) -> Schedule:
  """Betas evenly from start to end: that of DDPM, guided diffusion and SDM."""
  return Schedule(np.linspace(start, end, timesteps))


SCHEDULES = {'scaled_linear': scaled_linear, 'linear': linear}


def make_schedule(
  name: str, *, start: float | None = None, end: float | None = None, timesteps: int = 1000
) -> Schedule:
  """The schedule `name` of SCHEDULES; first and last beta are its own where None."""
  if name not in SCHEDULES:
    raise UserError(f'unknown schedule {name!r}; choose from {", ".join(SCHEDULES)}')
  if timesteps < 2:
    raise UserError(f'timesteps={timesteps}; a schedule has 2 or more, published ones 1000')
  betas = {key: value for key, value in {'start': start, 'end': end}.items() if value is not None}
  for key, value in betas.items():
    if not 0 < value < 1:
      raise UserError(f'{key}={value} of the schedule is no beta; they lie between 0 and 1, such as 0.0015 or 0.02')
  return SCHEDULES[name](timesteps=timesteps, **betas)


def spaced_timesteps(timesteps: int, count: int) -> np.ndarray:
  """`count` of the timesteps 0..timesteps-1, the first and the last among them, evenly, rising: int32 [count].

  As guided diffusion chooses them: the steps are added up one by one and rounded half to even, which for some counts
  is another timestep than rounding the exact multiple gives. `count` is 2 or more.
  """
  step = (timesteps - 1) / (count - 1)
  return np.round(np.cumsum(np.append(0.0, np.full(count - 1, step)))).astype(np.int32)


def respaced(schedule: Schedule, timesteps: np.ndarray) -> Schedule:
  """The process that only visits `timesteps` (int [K], rising): its betas lead from one to the next (length K)."""
  kept = schedule.alphas_cumprod[timesteps]
  return Schedule(1 - kept / np.append(1.0, kept[:-1]))


def at(values: np.ndarray, t: jax.Array, x: jax.Array) -> jax.Array:
  """`values` [T] at timesteps `t`, int [B], [1] or a scalar: float32 [B or 1, 1, ...] of x's rank, to multiply x by."""
  t = jnp.asarray(t)
  return jnp.asarray(values, jnp.float32)[t].reshape(-1, *(1,) * (x.ndim - 1))
