"""Cross-entropy over the hard pixels of a batch: online hard example mining, as the public face parser trains by."""

# B batch | H,W pixels | K classes

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxface.collectives import sum_over_devices
from jaxface.errors import UserError


def pixel_cross_entropy(logits_BHWK: jax.Array, labels_BHW: jax.Array) -> jax.Array:
  """-log softmax(logits)[label] of every pixel, float32 [B, H, W]; 0 where the label is outside 0..K-1 (255, -100)."""
  return _cross_entropy(logits_BHWK.astype(jnp.float32), labels_BHW.astype(jnp.int32))


@jax.custom_vjp
def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  return _cross_entropy_forward(logits, labels)[0]


def _cross_entropy_forward(logits: jax.Array, labels: jax.Array):
  # Class by class, not reductions over them: compilers make it one look at the logits, where those would be four.
  each = [logits[..., k] for k in range(logits.shape[-1])]
  most = functools.reduce(jnp.maximum, each)
  log_sum = most + jnp.log(sum(jnp.exp(logit - most) for logit in each))
  own = sum(jnp.where(labels == k, logit, 0.0) for k, logit in enumerate(each))
  return jnp.where(_labelled(logits, labels), log_sum - own, 0.0), (logits, labels, log_sum)


def _cross_entropy_backward(saved, gradient: jax.Array):
  logits, labels, log_sum = saved
  softmax = jnp.exp(logits - log_sum[..., None])
  gradient = jnp.where(_labelled(logits, labels), gradient, 0.0)
  return (softmax - jax.nn.one_hot(labels, logits.shape[-1])) * gradient[..., None], None


def _labelled(logits: jax.Array, labels: jax.Array) -> jax.Array:
  return (labels >= 0) & (labels < logits.shape[-1])


_cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


def ohem_cross_entropy(
  logits_BHWK: jax.Array, labels_BHW: jax.Array, *, threshold: float, least: int, axis_name: str | None = None
) -> jax.Array:
  """Mean cross-entropy of the batch's hard pixels: a float32 scalar, in nats.

  Hard are the pixels whose class has a probability below `threshold`. If there are more than `least` of them they alone
  count, all of them; otherwise the `least` pixels of the largest losses do, where pixels without label count as losses
  of 0. Published: 0.7, and a sixteenth of the batch's pixels.

  The batch is all there is: under `jit` the global one, sharded or not; under `pmap` give its `axis_name`, and `least`
  as the number over all devices. Nothing is sorted, so that no device needs another one's pixels: the `least`-th
  largest loss is found digit by digit, exact to the bit, and equal losses there share what is left of the count.
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

  limit = _kth_largest(loss, least, axis_name)
  above, equal = loss > limit, loss == limit
  left = (least - count(above)) / count(equal)
  top = jnp.where(above, 1.0, jnp.where(equal, left, 0.0)) / least
  return jnp.where(hard_count > least, jnp.where(hard, 1 / jnp.maximum(hard_count, 1), 0.0), top)


def _kth_largest(values: jax.Array, k: int, axis_name: str | None) -> jax.Array:
  """The k-th largest of non-negative float32 numbers, those of all devices."""
  # Read as integers, non-negative floats keep their order: the answer is built of eight digits. abs turns -0 into 0.
  bits = lax.bitcast_convert_type(jnp.abs(values), jnp.uint32)

  def add_digit(i: jax.Array, found: jax.Array) -> jax.Array:
    shift = (28 - 4 * i).astype(jnp.uint32)
    candidates = [found | (jnp.uint32(digit) << shift) for digit in range(1, 16)]
    reached = tuple((bits >= candidate).astype(jnp.int32) for candidate in candidates)
    # Counted together, which takes one look; by picture first, so that devices then exchange one array of counts.
    add = lambda totals, more: tuple(map(lax.add, totals, more))
    by_picture = jnp.stack(lax.reduce(reached, (jnp.int32(0),) * len(reached), add, range(1, bits.ndim)))
    digit = jnp.sum(sum_over_devices(by_picture.sum(1), axis_name) >= k, dtype=jnp.uint32)
    return found | (digit << shift)

  return lax.bitcast_convert_type(lax.fori_loop(0, 8, add_digit, jnp.uint32(0)), jnp.float32)
