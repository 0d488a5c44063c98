"""The variational bound's term of one timestep: what trains a variance that the network predicts."""

# B batch

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.stats import norm

from jaxface.diffusion.process import Prediction, learned_log_variance, posterior, x0_from_eps
from jaxface.diffusion.schedule import Schedule


def variational_bound(
  schedule: Schedule, x0: jax.Array, x: jax.Array, prediction: Prediction, t_B: jax.Array
) -> jax.Array:
  """How far p(x_{t-1} | x_t), variance learned, is from the truth: float32 [B], in bits per dimension.

  KL(q(x_{t-1} | x_t, x_0) || p), and at t = 0 minus the log probability of x_0's grey level, one of 256 in [-1, 1]; `x`
  is x_t. Only `prediction.fraction` gets a gradient, so that this trains nothing but the variance (Nichol & Dhariwal
  2021, 3.1). The loss of SDM is the squared error of the noise plus this.
  """
  x0, x = x0.astype(jnp.float32), x.astype(jnp.float32)
  eps = lax.stop_gradient(prediction.eps)
  mean, _ = posterior(schedule, x0_from_eps(schedule, x, eps, t_B), x, t_B)
  log_variance = learned_log_variance(schedule, prediction.fraction, t_B)
  true_mean, true_log_variance = posterior(schedule, x0, x, t_B)

  ratio = true_log_variance - log_variance
  squared = jnp.square(true_mean - mean) * jnp.exp(-log_variance)
  divergence = 0.5 * (jnp.expm1(ratio) - ratio + squared)
  first = t_B.reshape(-1, *(1,) * (x.ndim - 1)) == 0
  nats = jnp.where(first, -_log_probability_of_level(x0, mean, log_variance), divergence)
  return nats.mean(tuple(range(1, nats.ndim))) / math.log(2)


def _log_probability_of_level(x0: jax.Array, mean: jax.Array, log_variance: jax.Array) -> jax.Array:
  """Log of the probability that x0's grey level has, the outermost two reaching to infinity. Ho et al. 2020, (13).

  No probability counts as less than 1e-12, as in the public code.
  """
  scale = jnp.exp(-0.5 * log_variance)
  centred, half = scale * (x0 - mean), scale / 255
  # On the side of the tail, where float32 keeps small probabilities apart.
  inside = norm.cdf(half - jnp.abs(centred)) - norm.cdf(-half - jnp.abs(centred))
  lowest, highest = norm.cdf(centred + half), norm.cdf(half - centred)
  probability = jnp.where(x0 < -0.999, lowest, jnp.where(x0 > 0.999, highest, inside))
  return jnp.log(jnp.maximum(probability, 1e-12))
