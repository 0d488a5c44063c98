"""A gradient in pieces is that of the whole where nothing but the mean enters; the average follows what was learnt."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxface.state import first_state
from jaxface.tasks.gradients import gradients, update

PARAMS = {'w': jnp.array([0.5, -2.0])}
BATCH = {'x': jnp.arange(12.0).reshape(6, 2) / 4, 'y': jnp.array([1.0, -1, 2, 0, 3, 5])}


def _loss(params, pieces_seen, batch):
  loss = jnp.square((batch['x'] * params['w'][None]).sum(1) - batch['y']).mean()
  return loss, (pieces_seen + 1, {'loss': loss})


@pytest.mark.parametrize('pieces', [2, 3, 6])
def test_pieces_have_the_gradient_and_the_metrics_of_the_whole(pieces):
  whole, _, told = gradients(_loss, PARAMS, jnp.int32(0), BATCH)
  found, seen, metrics = gradients(_loss, PARAMS, jnp.int32(0), BATCH, accumulate_steps=pieces)
  np.testing.assert_allclose(found['w'], whole['w'], rtol=1e-5)
  assert metrics == {name: pytest.approx(float(value), rel=1e-5) for name, value in told.items()}
  assert metrics['grad_norm'] == pytest.approx(float(jnp.linalg.norm(whole['w'])), rel=1e-5)
  assert seen == pieces


def test_the_average_moves_towards_the_parameters_after_the_update():
  state = first_state(PARAMS, jnp.int32(0), optax.sgd(0.1).init(PARAMS), ema=PARAMS)
  gradient = jax.grad(lambda params: _loss(params, 0, BATCH)[0])(PARAMS)['w']
  after, _ = update(state, BATCH, _loss, optax.sgd(0.1), ema_decay=0.75)
  np.testing.assert_allclose(after.params['w'], PARAMS['w'] - 0.1 * gradient, rtol=1e-6)
  np.testing.assert_allclose(after.ema['w'], PARAMS['w'] - 0.25 * 0.1 * gradient, rtol=1e-6)
  assert (after.step, after.model_state) == (1, 1)
