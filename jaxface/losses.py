"""The terms of the VAE's objective, of which others take the l1: scalars in float32; tasks weigh and add them.

Toledo & Antonelo 2021. Its published weights: KL 1e-3, SSIM 1, l1 4, l2 100, cross-entropy plus dice 1.
"""

import jax
import jax.numpy as jnp
import optax

from jaxface.collectives import sum_over_devices
from jaxface.filters import picture_pair
from jaxface.ssim import ssim

# Keras's guard against log(0), part of the published loss of saturated probabilities.
_EPSILON = 1e-7


def kl_divergence(mean: jax.Array, log_sigma: jax.Array) -> jax.Array:
  """KL(N(mean, exp(log_sigma)^2) || N(0, 1)), both [B, D], in nats per latent dimension: the mean over B and D.

  -1/2 * mean(1 + 2 s - m^2 - exp(2 s)), s the log of the standard deviation and not of the variance. Kingma & Welling
  2014, App. B, sum over D; here it is the mean, as published.
  """
  mean, log_sigma = mean.astype(jnp.float32), log_sigma.astype(jnp.float32)
  return -0.5 * jnp.mean(1 + 2 * log_sigma - jnp.square(mean) - jnp.exp(2 * log_sigma))


def binary_cross_entropy(probability: jax.Array, target: jax.Array) -> jax.Array:
  """-mean(t log p + (1 - t) log(1 - p)) over all elements; both in [0, 1], of one shape.

  As Keras takes it of probabilities: clipped to [1e-7, 1 - 1e-7] and 1e-7 added inside the logarithms, so that at most
  15.4 comes from one element, and no gradient from a saturated one. For training use the logits' form.
  """
  target = target.astype(jnp.float32)
  probability = jnp.clip(probability.astype(jnp.float32), _EPSILON, 1 - _EPSILON)
  return -jnp.mean(target * jnp.log(probability + _EPSILON) + (1 - target) * jnp.log(1 - probability + _EPSILON))


def binary_cross_entropy_from_logits(logits: jax.Array, target: jax.Array) -> jax.Array:
  """`binary_cross_entropy` of sigmoid(logits), exact however large the logits; targets in [0, 1]. Mean over all."""
  return jnp.mean(optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), target.astype(jnp.float32)))


def dice_loss(prediction: jax.Array, target: jax.Array, *, axis_name: str | None = None) -> jax.Array:
  """1 - (2 sum(p t) + 1) / (sum(p^2) + sum(t^2) + 1), in [0, 1), for masks in [0, 1] of one shape.

  The squared dice of Milletari et al. 2016, smoothed by 1, with sums over the whole batch and not per picture: large
  faces count for more. Under `pmap` give its `axis_name`, so that the batch is that of all devices.
  """
  prediction, target = prediction.astype(jnp.float32), target.astype(jnp.float32)
  sums = jnp.sum(prediction * target), jnp.sum(jnp.square(prediction)) + jnp.sum(jnp.square(target))
  overlap, total = sum_over_devices(sums, axis_name)
  # 1e-8 vanishes beside the 1 in float32; the published formula has it too.
  return 1 - (2 * overlap + 1) / (total + 1 + 1e-8)


def l1_loss(a: jax.Array, b: jax.Array) -> jax.Array:
  """Mean |a - b| over all elements of pictures [..., H, W, C].

  Equal elements have gradient 0, where `jnp.abs` has 1.
  """
  a, b = picture_pair(a, b)
  return jnp.mean((a - b) * jax.lax.stop_gradient(jnp.sign(a - b)))


def l2_loss(a: jax.Array, b: jax.Array) -> jax.Array:
  """Mean (a - b)^2 over all elements of pictures [..., H, W, C]."""
  a, b = picture_pair(a, b)
  return jnp.mean(jnp.square(a - b))


def ssim_loss(
  a: jax.Array, b: jax.Array, *, mask: jax.Array | None = None, filter_size: int = 9, fused: bool = False
) -> jax.Array:
  """Mean over the batch of 2 - SSIM, in [1, 3]: 1, not 0, for equal pictures. Pictures [B, H, W, C] in [0, 1].

  `mask` [B, H, W, 1] weighs the windows, `fused` is for TPU (see `jaxface.ssim.ssim`). The window of 9 is the published
  one.
  """
  return jnp.mean(2 - ssim(a, b, mask=mask, filter_size=filter_size, fused=fused))
