"""Cross-entropy over the hard pixels of a batch: online hard example mining, as the public face parser trains by."""

# B batch | H,W pixels | K classes

import jax
import jax.numpy as jnp
from jax import lax

from jaxface.collectives import sum_over_devices
from jaxface.errors import UserError


def pixel_cross_entropy(logits_BHWK: jax.Array, labels_BHW: jax.Array) -> jax.Array:
  """-log softmax(logits)[label] of every pixel, float32 [B, H, W]; 0 where the label is outside 0..K-1 (255, -100)."""
  logits_BHWK, labels_BHW = logits_BHWK.astype(jnp.float32), labels_BHW.astype(jnp.int32)
  classes = jnp.arange(logits_BHWK.shape[-1], dtype=jnp.int32)[None, None, None]
  own = labels_BHW[..., None] == classes
  # A select and a sum: gathers of single classes are slow on TPUs, and their gradients on all.
  loss_BHW = jax.nn.logsumexp(logits_BHWK, -1) - jnp.where(own, logits_BHWK, 0).sum(-1)
  return jnp.where(own.any(-1), loss_BHW, 0.0)


def ohem_cross_entropy(
  logits_BHWK: jax.Array, labels_BHW: jax.Array, *, threshold: float, least: int, axis_name: str | None = None
) -> jax.Array:
  """Mean cross-entropy of the batch's hard pixels: a float32 scalar, in nats.

  Hard are the pixels whose class has a probability below `threshold`. If there are more than `least` of them they alone
  count, all of them; otherwise the `least` pixels of the largest losses do, where pixels without label count as losses
  of 0. Published: 0.7, and a sixteenth of the batch's pixels.

  The batch is all there is: under `jit` the global one, sharded or not; under `pmap` give its `axis_name`, and `least`
  as the number over all devices. Nothing is sorted, so that no device needs another one's pixels: the `least`-th
  largest loss is found by bisection, exact to the bit, and equal losses there share what is left of the count.
  """
  loss = pixel_cross_entropy(logits_BHWK, labels_BHW)
  total = loss.size * (1 if axis_name is None else lax.axis_size(axis_name))
  if not 0 < least < total:
    raise UserError(f'least={least} hard pixels of a batch of {total}; it must be above 0 and below the latter')

  weight = lax.stop_gradient(_weights(loss, -jnp.log(jnp.float32(threshold)), least, axis_name))
  return sum_over_devices(jnp.sum(weight * loss), axis_name)


def _weights(loss: jax.Array, hard_loss: jax.Array, least: int, axis_name: str | None) -> jax.Array:
  """Each pixel's share in the mean."""

  def count(mask: jax.Array) -> jax.Array:
    return sum_over_devices(jnp.sum(mask, dtype=jnp.int32), axis_name)

  hard = loss > hard_loss
  hard_count = count(hard)

  limit = _kth_largest(loss, least, count)
  above, equal = loss > limit, loss == limit
  left = (least - count(above)) / count(equal)
  top = jnp.where(above, 1.0, jnp.where(equal, left, 0.0)) / least
  return jnp.where(hard_count > least, jnp.where(hard, 1 / jnp.maximum(hard_count, 1), 0.0), top)


def _kth_largest(values: jax.Array, k: int, count) -> jax.Array:
  """The k-th largest of non-negative float32 numbers; `count(mask)` counts over all devices."""
  # Read as integers, non-negative floats keep their order: the answer is built bit by bit. abs turns -0 into 0.
  bits = lax.bitcast_convert_type(jnp.abs(values), jnp.int32)

  def add_bit(i: jax.Array, found: jax.Array) -> jax.Array:
    candidate = found | (jnp.int32(1) << (30 - i))
    return jnp.where(count(bits >= candidate) >= k, candidate, found)

  return lax.bitcast_convert_type(lax.fori_loop(0, 31, add_bit, jnp.int32(0)), jnp.float32)
