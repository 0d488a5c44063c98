"""Checkpoints: the best is the one of the lowest score, wherever in the run it lies, and it is what is used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.checkpoint import Checkpoints, restore_for_evaluation, restore_weights
from jaxface.state import first_state

SCORES = {2: 3.0, 4: 1.0, 6: 2.0, 8: 2.5}


def _state(step):
  params = {'kernel': jnp.full(3, float(step))}
  state = first_state(params, None, {'moment': jnp.zeros(3)})
  return state.replace(step=jnp.int32(step), ema={'kernel': jnp.full(3, step + 0.5)})


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """A run whose best checkpoint is neither the first nor the last."""
  folder = tmp_path_factory.mktemp('run')
  with Checkpoints(folder, keep_last=1, keep_best=1) as checkpoints:
    for step, score in SCORES.items():
      checkpoints.save(step, _state(step), 10 * step, 'data', score)
      checkpoints.wait()
  return folder


def test_the_best_and_the_last_are_kept(workdir):
  with Checkpoints(workdir, read_only=True) as checkpoints:
    assert checkpoints.steps == [4, 8]
    assert checkpoints.best_step == 4


@pytest.mark.parametrize(('which', 'step'), [('best', 4), ('latest', 8), ('4', 4)])
def test_what_is_asked_for_is_restored(workdir, which, step):
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), _state(0))
  state, found = restore_weights(workdir, abstract, which)
  assert found == int(state.step) == step
  np.testing.assert_array_equal(state.params['kernel'], step)
  light, _ = restore_for_evaluation(workdir, abstract, which)
  np.testing.assert_array_equal(light.params['kernel'], step + 0.5)


def test_as_many_are_kept_as_asked_for_and_what_has_no_score_is_no_best(tmp_path):
  with Checkpoints(tmp_path, keep_last=2, keep_best=2) as checkpoints:
    for step, score in ((1, 4.0), (2, 1.0), (3, None), (4, 2.0), (5, 3.0), (6, None), (7, 5.0)):
      checkpoints.save(step, _state(step), step, 'data', score)
      checkpoints.wait()
    assert checkpoints.steps == [2, 4, 6, 7]
    assert checkpoints.best_step == 2


def test_where_nothing_was_validated_the_latest_is_the_best(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, _state(step), step, 'data')
      checkpoints.wait()
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), _state(0))
  assert restore_weights(tmp_path, abstract)[1] == 2
