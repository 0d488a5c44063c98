"""The gradient of a loss over a batch, whole or in pieces, and the update by it."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxface.collectives import mean_over_devices
from jaxface.state import PyTree, TrainState, update_ema

Metrics = dict[str, jax.Array]
LossFn = Callable[[PyTree, PyTree, Mapping[str, Any]], tuple[jax.Array, tuple[PyTree, Metrics]]]


def gradients(
  loss_fn: LossFn,
  params: PyTree,
  model_state: PyTree,
  batch: Mapping[str, jax.Array],
  *,
  accumulate_steps: int = 1,
  axis_name: str | None = None,
) -> tuple[PyTree, PyTree, Metrics]:
  """Mean gradient of `loss_fn(params, model_state, batch) -> (loss, (model_state, metrics))` over a batch.

  With `accumulate_steps` > 1 the batch is taken in so many pieces, one after the other, for that much less memory.
  Each piece is normalised by its own BatchNorm statistics, so where there is BatchNorm the result is not that of the
  whole batch, nor, with another number of processes, which hold other rows, that of the same pieces. A spectral norm's
  vectors move one step with every piece.

  Returns:
    (gradient, model state after the batch, metrics with 'grad_norm'); averaged over the devices of `axis_name`.
  """
  value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
  if accumulate_steps == 1:
    (_, (model_state, metrics)), gradient = value_and_grad(params, model_state, batch)
  else:
    # Neighbouring rows go to different pieces, so that every device keeps its own rows in every piece.
    pieces = jax.tree.map(lambda rows: rows.reshape(-1, accumulate_steps, *rows.shape[1:]).swapaxes(0, 1), dict(batch))

    def add(carry: tuple[PyTree, PyTree], piece: Mapping[str, jax.Array]) -> tuple[tuple[PyTree, PyTree], Metrics]:
      total, model_state = carry
      (_, (model_state, metrics)), gradient = value_and_grad(params, model_state, piece)
      return (jax.tree.map(jnp.add, total, gradient), model_state), metrics

    zeros = jax.tree.map(jnp.zeros_like, params)
    (total, model_state), stacked = jax.lax.scan(add, (zeros, model_state), pieces)
    gradient = jax.tree.map(lambda leaf: leaf / accumulate_steps, total)
    metrics = jax.tree.map(lambda leaf: leaf.mean(0), stacked)
  gradient = mean_over_devices(gradient, axis_name)
  return gradient, model_state, {**metrics, 'grad_norm': optax.tree.norm(gradient)}


def update_network(
  loss_fn: LossFn,
  params: PyTree,
  opt_state: PyTree,
  model_state: PyTree,
  batch: Mapping[str, Any],
  optimizer: optax.GradientTransformation,
  *,
  accumulate_steps: int = 1,
  axis_name: str | None = None,
) -> tuple[PyTree, PyTree, PyTree, Metrics]:
  """One update of the parameters that one loss trains, of several networks or all there are.

  Returns:
    (parameters, optimizer state, model state, metrics of `gradients`), all after the update.
  """
  gradient, model_state, metrics = gradients(
    loss_fn, params, model_state, batch, accumulate_steps=accumulate_steps, axis_name=axis_name
  )
  updates, opt_state = optimizer.update(gradient, opt_state, params)
  return optax.apply_updates(params, updates), opt_state, model_state, metrics


def update(
  state: TrainState,
  batch: Mapping[str, jax.Array],
  loss_fn: LossFn,
  optimizer: optax.GradientTransformation,
  *,
  ema_decay: float | jax.Array,
  accumulate_steps: int = 1,
  axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
  """One update of a task with one loss and one optimizer: the state after it, and the metrics of `gradients`.

  `ema_decay` is what the averaged copy keeps of itself, where there is one.
  """
  params, opt_state, model_state, metrics = update_network(
    loss_fn,
    state.params,
    state.opt_state,
    state.model_state,
    batch,
    optimizer,
    accumulate_steps=accumulate_steps,
    axis_name=axis_name,
  )
  state = state.replace(
    step=state.step + 1,
    params=params,
    model_state=model_state,
    opt_state=opt_state,
    ema=update_ema(state.ema, params, ema_decay),
  )
  return state, metrics
