"""What a denoiser is trained by: weighted errors of what it predicts, and of the classes its attention tells apart."""

# B batch | H,W sides of a label map | N positions of a layer, row by row | K classes | T timesteps

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxface.diffusion.process import check_kind
from jaxface.diffusion.schedule import Schedule
from jaxface.errors import UserError
from jaxface.resize import nearest

WEIGHTINGS = ('simple', 'min_snr', 'elbo')
DISTANCES = {'l2': jnp.square, 'l1': jnp.abs}


def row_errors(prediction: jax.Array, target: jax.Array, distance: str = 'l2') -> jax.Array:
  """Mean square ('l2') or mean absolute value ('l1') of the difference over all but the first axis: float32 [B]."""
  if distance not in DISTANCES:
    raise UserError(f'unknown distance {distance!r}; choose from {", ".join(DISTANCES)}')
  error = DISTANCES[distance](prediction.astype(jnp.float32) - target.astype(jnp.float32))
  return error.mean(tuple(range(1, error.ndim)))


def loss_weights(name: str, schedule: Schedule, kind: str = 'eps', *, gamma: float = 5.0) -> np.ndarray:
  """Factor of the squared error at each timestep, float64 [T], for a network that predicts 'eps', 'x0' or 'v'.

  'simple': 1, whatever is predicted (Ho et al. 2020, (14)).
  'min_snr': Hang et al. 2023, (8), s the signal-to-noise ratio: min(s, gamma) of an error of the picture, hence
    min(s, gamma) / s of one of the noise and min(s, gamma) / (s + 1) of one of the velocity. Its gamma is 5.
  'elbo': the variational bound's, with the posterior's variance; entry 0, which is 1/0, is that of entry 1.
  """
  check_kind(kind)
  if name not in WEIGHTINGS:
    raise UserError(f'unknown weighting {name!r}; choose from {", ".join(WEIGHTINGS)}')
  if name == 'simple':
    return np.ones(len(schedule))
  ratio = schedule.signal_to_noise
  if name == 'min_snr':
    of_noise = np.minimum(ratio, gamma) / ratio
  else:
    betas, a, variance = schedule.betas[1:], schedule.alphas_cumprod[1:], schedule.posterior_variance[1:]
    of_noise = betas**2 / (2 * variance * (1 - betas) * (1 - a))
    of_noise = np.append(of_noise[0], of_noise)
  # So much squared error of the noise is in one of what is predicted.
  return of_noise * {'eps': 1.0, 'x0': ratio, 'v': schedule.alphas_cumprod}[kind]


ATTENTION_LOSSES = {
  'bce': optax.sigmoid_binary_cross_entropy,
  'l2': optax.squared_error,
}


def attention_loss(scores: Sequence[jax.Array], labels_BHW: jax.Array, kind: str = 'bce') -> jax.Array:
  """How well cross-attention tells the classes apart: scalar, summed over the layers, without weight.

  Of each layer the scaled, unmasked scores [B, heads, N, K], averaged over the heads, against the one-hot labels (int
  [B, H, W], 0..K-1) at the layer's positions, which are a label map some whole number of times as small: 'bce',
  cross-entropy of each class from logits, or 'l2', squared error; the mean over rows, positions and classes.
  """
  if kind not in ATTENTION_LOSSES:
    raise UserError(f'unknown attention loss {kind!r}; choose from {", ".join(ATTENTION_LOSSES)}')
  height, width = labels_BHW.shape[1:]
  total = jnp.float32(0)
  for scores_BhNK in scores:
    _, _, positions, classes = scores_BhNK.shape
    times = math.isqrt(height * width // positions)
    size = height // times, width // times
    assert math.prod(size) == positions, f'{positions} positions are no {height}x{width} label map made smaller'
    labels_BN = nearest(labels_BHW, size).reshape(-1, positions)
    logits_BNK = scores_BhNK.astype(jnp.float32).mean(1)
    total += ATTENTION_LOSSES[kind](logits_BNK, jax.nn.one_hot(labels_BN, classes)).mean()
  return total


def ema_decay(updates: jax.Array, longest: float = 0.9999) -> jax.Array:
  """min(longest, (1 + n) / (10 + n)) for the n-th update of the averaged parameters, n = 1 at the first: scalar."""
  return jnp.minimum(longest, (1 + updates) / (10 + updates))
