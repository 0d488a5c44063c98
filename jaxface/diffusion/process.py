"""The forward process at given timesteps, and what a network may predict of it: noise, picture, velocity.

Every function takes `t`, int [B], [1] or a scalar, and arrays [B, ...] of any rank; all compute and return float32.
"""

# B batch | ... the sides and channels of a picture or latent

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxface.diffusion.schedule import Schedule, at
from jaxface.errors import UserError


class Prediction(NamedTuple):
  """What a network says of x_t: the noise in it, and how much noise the next step should draw; both [B, ...].

  `fraction` leads from the posterior's log variance, at 0, to beta's, at 1, and may lie outside of both (Nichol &
  Dhariwal 2021, (15)).
  """

  eps: jax.Array
  fraction: jax.Array


def split_prediction(output: jax.Array) -> Prediction:
  """Network output [B, ..., 2C] with a learned variance range: C channels of noise, then C of 2 fraction - 1."""
  eps, v = jnp.split(output.astype(jnp.float32), 2, axis=-1)
  return Prediction(eps, (v + 1) / 2)


# What networks are trained to predict. The velocity is Salimans & Ho 2022's.
KINDS = ('eps', 'x0', 'v')


def check_kind(kind: str) -> None:
  """Raises a UserError unless `kind` is one of KINDS."""
  if kind not in KINDS:
    raise UserError(f'unknown prediction {kind!r}; choose from {", ".join(KINDS)}')


def _levels(schedule: Schedule, t: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Factors of picture and noise in x_t."""
  return at(np.sqrt(schedule.alphas_cumprod), t, x), at(np.sqrt(1 - schedule.alphas_cumprod), t, x)


def add_noise(schedule: Schedule, x0: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
  """x_t = sqrt(a) x_0 + sqrt(1 - a) noise, where a = alphas_cumprod[t]."""
  signal, sigma = _levels(schedule, t, x0)
  return signal * x0 + sigma * noise


def target(kind: str, schedule: Schedule, x0: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
  """What a network of `kind` should say of x_t: the noise, the picture, or v = sqrt(a) noise - sqrt(1 - a) x_0."""
  check_kind(kind)
  if kind == 'eps':
    return noise.astype(jnp.float32)
  if kind == 'x0':
    return x0.astype(jnp.float32)
  signal, sigma = _levels(schedule, t, x0)
  return signal * noise - sigma * x0


def eps_from(kind: str, schedule: Schedule, x: jax.Array, output: jax.Array, t: jax.Array) -> jax.Array:
  """The noise in x_t according to the output of a network of `kind`: what the samplers ask for."""
  check_kind(kind)
  if kind == 'eps':
    return output.astype(jnp.float32)
  signal, sigma = _levels(schedule, t, x)
  return (x - signal * output) / sigma if kind == 'x0' else sigma * x + signal * output


def x0_from_eps(schedule: Schedule, x: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
  """(x_t - sqrt(1 - a) eps) / sqrt(a)."""
  signal, sigma = _levels(schedule, t, x)
  return (x - sigma * eps) / signal


def posterior(schedule: Schedule, x0: jax.Array, x: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Mean [B, ...] and log variance [B, 1, ...] of q(x_{t-1} | x_t, x_0). Ho et al. 2020, (6) and (7)."""
  mean = at(schedule.posterior_from_x0, t, x) * x0 + at(schedule.posterior_from_x, t, x) * x
  return mean, at(schedule.posterior_log_variance, t, x)


def learned_log_variance(schedule: Schedule, fraction: jax.Array, t: jax.Array) -> jax.Array:
  """The log variance that `Prediction.fraction` stands for: between the posterior's and beta's."""
  low, high = (at(values, t, fraction) for values in (schedule.posterior_log_variance, np.log(schedule.betas)))
  return low + (high - low) * fraction
