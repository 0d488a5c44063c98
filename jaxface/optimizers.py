"""Optimizers by name, as optax transformations; Keras's own Adam and PyTorch's SGD among them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from jaxface.errors import UserError, check_at_least


class KerasAdamState(NamedTuple):
  """Step count (int32) and the two moments, shaped as the parameters."""

  count: jax.Array
  mean: optax.Updates
  variance: optax.Updates


def scale_by_keras_adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-7) -> optax.GradientTransformation:
  """Adam (Kingma & Ba 2015) as Keras computes it: `sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)`.

  The epsilon meets the *uncorrected* second moment (the "epsilon hat" of the paper's section 2), so against
  `optax.scale_by_adam` it acts as `eps / sqrt(1 - b2^t)`: 32 times as large at the first step. That matters where
  gradients are tiny, as they are after clipping every variable to a norm of 1e-3.
  """

  def init(params: optax.Params) -> KerasAdamState:
    zeros = jax.tree.map(jnp.zeros_like, params)
    return KerasAdamState(jnp.zeros((), jnp.int32), zeros, zeros)

  def update(
    updates: optax.Updates, state: KerasAdamState, params: optax.Params | None = None
  ) -> tuple[optax.Updates, KerasAdamState]:
    del params
    count = state.count + 1
    mean = optax.tree.update_moment(updates, state.mean, b1, 1)
    variance = optax.tree.update_moment(updates, state.variance, b2, 2)
    t = count.astype(jnp.float32)
    correction = jnp.sqrt(1 - b2**t) / (1 - b1**t)
    updates = jax.tree.map(lambda m, v: correction * m / (jnp.sqrt(v) + eps), mean, variance)
    return updates, KerasAdamState(count, mean, variance)

  return optax.GradientTransformation(init, update)


def clip_each_by_norm(max_norm: float) -> optax.GradientTransformation:
  """Scales each variable's gradient to an L2 norm of at most `max_norm`: Keras's `clipnorm`, no global norm."""

  def clip(gradient: jax.Array) -> jax.Array:
    norm = jnp.sqrt(jnp.sum(jnp.square(gradient)))
    return gradient * (max_norm / jnp.maximum(norm, max_norm))

  return optax.stateless(lambda updates, _: jax.tree.map(clip, updates))


OPTIMIZERS = {
  'keras_adam': scale_by_keras_adam,
  'adam': optax.scale_by_adam,
  'sgd': lambda momentum=0.0: optax.trace(momentum),
  'momentum': lambda momentum=0.9: optax.trace(momentum),
}

# Those decays that go by the number of steps in all.
ENDING_DECAYS = ('cosine', 'linear', 'poly')


def learning_rate_schedule(
  peak: float,
  *,
  total_steps: int,
  warmup_steps: int = 0,
  warmup_from: float = 0.0,
  decay: str = 'constant',
  halve_steps: int = 0,
) -> optax.Schedule:
  """Warm-up over `warmup_steps`, then `decay` ('constant', or 'cosine', 'linear' or 'poly' to 0) until `total_steps`.

  The warm-up is linear from 0, or with `warmup_from` > 0 geometric from there. 'poly' is linear decay to the power 0.9.
  'halve' halves every `halve_steps` updates, one update early as PyTorch does whose scheduler steps first.
  """
  if decay == 'halve' and halve_steps < 1:
    raise UserError(
      f"optimizer.decay='halve' needs optimizer.halve_steps; got {halve_steps}, give at least 1 (in the experiment's "
      'file, where that does not list it)'
    )
  for name, value in (('learning_rate', peak), ('warmup_steps', warmup_steps)):
    if value < 0:
      raise UserError(f'optimizer.{name}={value}; give at least 0')
  after = max(total_steps - warmup_steps, 1)
  decays = {
    'constant': optax.constant_schedule(peak),
    'cosine': optax.cosine_decay_schedule(peak, after),
    'linear': optax.linear_schedule(peak, 0.0, after),
    # optax's own subtracts a float32 quotient from 1, which leaves three digits of the last steps.
    'poly': lambda count: peak * (jnp.maximum(after - count, 0) / after) ** 0.9,
    'halve': lambda count: peak * 0.5 ** ((count + 1) // halve_steps),
  }
  if decay not in decays:
    raise UserError(f'unknown optimizer.decay {decay!r}; choose from {", ".join(decays)}')
  main = decays[decay]
  if not warmup_steps:
    return main
  if warmup_from:
    warmup = optax.exponential_decay(warmup_from, warmup_steps, peak / warmup_from)
  else:
    warmup = optax.linear_schedule(0.0, peak, warmup_steps)
  return optax.join_schedules([warmup, main], [warmup_steps])


def scale_rates(factors: Mapping[str, float]) -> optax.GradientTransformation:
  """Multiplies the updates of the parts of the network that `factors` names: 'head', or 'decoder/final' within one."""

  def scale(updates: optax.Updates, part: Sequence[str], factor: float) -> optax.Updates:
    if not part:
      return jax.tree.map(lambda leaf: leaf * factor, updates)
    name, *within = part
    if name not in updates:
      raise UserError(f'optimizer.rates names {name!r}; the network has {", ".join(updates)}')
    return {**updates, name: scale(updates[name], within, factor)}

  def update(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
    del params
    for part, factor in factors.items():
      updates = scale(updates, part.split('/'), factor)
    return updates

  return optax.stateless(update)


def make_optimizer(config: ConfigDict, total_steps: int) -> optax.GradientTransformation:
  """Builds the optimizer that `config` (the `optimizer` part of an experiment) describes.

  Keys: `name` (one of OPTIMIZERS), `options` (its keyword arguments), `learning_rate`, `warmup_steps`, `decay`,
  `clip_each` and `clip_global` (gradient norms; 0 clips nothing), `weight_decay` (decoupled, on kernels). Optional:
  `warmup_from`, `halve_steps`, `l2` (weight decay as PyTorch has it: added to the gradient, before the moments; on
  kernels), `rates`, factors of the learning rate for parts of the network, and `l2_everywhere` and
  `weight_decay_everywhere` for decay of all parameters.
  """
  if config.name not in OPTIMIZERS:
    raise UserError(f'unknown optimizer.name {config.name!r}; choose from {", ".join(OPTIMIZERS)}')
  given = [name for name in ('clip_each', 'clip_global', 'weight_decay', 'l2') if name in config]
  check_at_least(0, config, *given, part='optimizer.')
  schedule = learning_rate_schedule(
    config.learning_rate,
    total_steps=total_steps,
    warmup_steps=config.warmup_steps,
    warmup_from=config.get('warmup_from', 0.0),
    decay=config.decay,
    halve_steps=config.get('halve_steps', 0),
  )
  kernels = lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)
  parts = []
  if config.clip_each:
    parts.append(clip_each_by_norm(config.clip_each))
  if config.clip_global:
    parts.append(optax.clip_by_global_norm(config.clip_global))
  if config.get('l2'):
    parts.append(optax.add_decayed_weights(config.l2, mask=None if config.get('l2_everywhere') else kernels))
  parts.append(OPTIMIZERS[config.name](**config.options))
  if config.weight_decay:
    everywhere = config.get('weight_decay_everywhere')
    parts.append(optax.add_decayed_weights(config.weight_decay, mask=None if everywhere else kernels))
  if config.get('rates'):
    parts.append(scale_rates(config.rates.to_dict()))
  parts.append(optax.scale_by_learning_rate(schedule))
  return optax.chain(*parts)
