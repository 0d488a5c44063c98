"""One step, many ways to run it: all must compute the same."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxface.errors import UserError
from jaxface.parallel import (
  JitEngine,
  PmapEngine,
  check_batch_size,
  make_engine,
  make_mesh,
  shardings_for,
)
from jaxface.state import for_evaluation
from jaxface.tasks import make_task
from tests.smoke import CUT_ALL, smoke_config

BATCH = 8


def _batch(step: int, rows: int = BATCH) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(step)
  return {
    'image': rng.integers(0, 256, (rows, 16, 16, 3), np.uint8),
    'mask': rng.integers(0, 256, (rows, 16, 16, 1), np.uint8),
    'row': np.arange(rows, dtype=np.int32),
  }


def _engine(config, mode='jit', devices=1, fsdp=1):
  mesh = make_mesh(fsdp, jax.devices()[:devices])
  if mode == 'pmap':
    return PmapEngine(make_task(config, PmapEngine.axis_name), seed=0, mesh=mesh)
  return JitEngine(make_task(config), seed=0, mesh=mesh, rules=CUT_ALL)


def _run(engine, steps=2, per_dispatch=1):
  """Final state, as saved, and every step's metrics."""
  state, log = engine.init(), []
  for first in range(0, steps, per_dispatch):
    batches = engine.put_stacked([_batch(first + i) for i in range(per_dispatch)])
    state, metrics = engine.train_step(state, batches, engine.dataset)
    log.append(engine.metrics_on_host(metrics))
  return engine.to_saved(state), {name: np.concatenate([m[name] for m in log]) for name in log[0]}


@pytest.fixture(scope='module')
def config():
  config = smoke_config('mask_ssim_l2')
  # The recipe's own optimizer divides by the size of tiny gradients and would blow up rounding; this one does not.
  config.optimizer.name = 'sgd'
  config.optimizer.clip_each = 0.0
  config.optimizer.learning_rate = 0.01
  config.ema_decay = 0.9
  return config


@pytest.fixture(scope='module')
def one_device(config):
  return _run(_engine(config))


def _assert_same(got, expected, rtol=2e-4):
  for name, values in expected[1].items():
    np.testing.assert_allclose(got[1][name], values, rtol=rtol, atol=1e-5, err_msg=name)
  host = functools.partial(jax.tree.map, np.asarray)
  chex.assert_trees_all_close(host(got[0]), host(expected[0]), rtol=rtol, atol=2e-5)


@pytest.mark.parametrize(('mode', 'fsdp'), [('jit', 1), ('jit', 4), ('pmap', 1)])
def test_eight_devices_compute_what_one_does(config, one_device, mode, fsdp):
  engine = _engine(config, mode, devices=8, fsdp=fsdp)
  got = _run(engine)
  if fsdp > 1:
    cut = [leaf for leaf in jax.tree.leaves(got[0].params) if not leaf.sharding.is_fully_replicated]
    assert cut, 'no parameter was sharded, so nothing was tested'
  _assert_same(got, one_device)


def test_several_steps_a_dispatch_are_the_same_steps(config, one_device):
  _assert_same(_run(_engine(config), per_dispatch=2), one_device)


def test_a_resident_dataset_gives_the_same_steps(config, one_device):
  engine = _engine(config, 'pmap', devices=8)
  batches = [_batch(step) for step in range(2)]
  engine.put_dataset({name: np.concatenate([b[name] for b in batches]) for name in ('image', 'mask')})
  state = engine.init()
  for step in range(2):
    index = np.arange(step * BATCH, (step + 1) * BATCH, dtype=np.int32)
    indices = engine.put_stacked([{'index': index, 'row': batches[0]['row']}])
    state, _ = engine.train_step(state, indices, engine.dataset)
  params = (jax.tree.map(np.asarray, saved.params) for saved in (engine.to_saved(state), one_device[0]))
  chex.assert_trees_all_close(*params, rtol=2e-4, atol=2e-5)


def test_accumulated_gradients_average_the_pieces(config, one_device):
  config = config.copy_and_resolve_references()
  config.accumulate_steps = 2
  one, many = _run(_engine(config)), _run(_engine(config, devices=4))
  _assert_same(many, one)
  # Each piece is normalised by itself, so the whole batch at once is close, but another computation.
  np.testing.assert_allclose(one[1]['loss'], one_device[1]['loss'], rtol=0.05)
  assert not np.array_equal(one[1]['loss'], one_device[1]['loss'])


def test_bfloat16_computes_with_float32_parameters(config, one_device):
  config = config.copy_and_resolve_references()
  config.model.dtype = 'bfloat16'
  state, metrics = _run(_engine(config))
  assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype('float32')}
  np.testing.assert_allclose(metrics['loss'], one_device[1]['loss'], rtol=0.02)
  assert not np.array_equal(metrics['loss'], one_device[1]['loss'])


def test_remat_changes_no_number(config, one_device):
  config = config.copy_and_resolve_references()
  config.model.remat = True
  _assert_same(_run(_engine(config)), one_device)


@pytest.mark.parametrize('mode', ['jit', 'pmap'])
def test_evaluation_sums_count_only_real_rows(config, mode):
  one, many = _engine(config), _engine(config, mode, devices=8)
  weight = np.array([1, 1, 1, 1, 1, 0, 0, 0], np.float32)
  sums = []
  for engine in (one, many):
    batch = {**_batch(0), 'weight': weight}
    batch['image'][5:] = 7  # Filling must not matter, whatever it is.
    light = for_evaluation(engine.init())
    sums.append(engine.metrics_on_host(engine.eval_step(light, engine.put(batch))))
  assert sums[0]['count'] == 5
  for name, value in sums[0].items():
    np.testing.assert_allclose(sums[1][name], value, rtol=2e-5, err_msg=name)
  pictures = [engine.render(for_evaluation(engine.init()), engine.put(_batch(0))) for engine in (one, many)]
  for name, value in pictures[0].items():
    np.testing.assert_allclose(pictures[1][name], value, atol=2e-5, err_msg=name)


def test_a_step_compiles_once(config):
  engine = _engine(config, devices=8)
  state = engine.init()
  for step in range(3):
    state, _ = engine.train_step(state, engine.put_stacked([_batch(step)]), None)
  assert engine.train_step._cache_size() == 1


def test_a_step_lowers_from_shapes_alone(config):
  engine = _engine(config, devices=8)
  shapes = {
    name: jax.ShapeDtypeStruct((1, *value.shape), value.dtype, sharding=engine.stacked_rows)
    for name, value in _batch(0).items()
  }
  assert 'sharding' in engine.train_step.lower(engine.abstract_state, shapes, None).as_text()


def test_sharding_rules_match_by_path_and_first_wins():
  mesh = make_mesh(4)
  tree = {'params': {'large': jnp.zeros((3, 3, 64, 128)), 'small': jnp.zeros(8)}, 'step': jnp.zeros(())}
  specs = jax.tree.map(lambda s: s.spec, shardings_for(tree, mesh))
  assert specs['params']['large'] == P(None, None, None, 'fsdp')
  assert specs['params']['small'] == P()
  assert specs['step'] == P()
  with pytest.raises(ValueError, match='no sharding rule matches step'):
    shardings_for(tree, mesh, rules=[('params/.*', lambda shape, mesh: P())])


def test_wrong_numbers_say_the_right_ones():
  with pytest.raises(UserError, match='batch_size=12 .* 8 .*next that does is 16'):
    check_batch_size(12, 8)
  with pytest.raises(UserError, match=r'fsdp=3 .* 8 devices; choose from \[1, 2, 4, 8\]'):
    make_mesh(3)
  with pytest.raises(UserError, match="unknown parallel.mode 'pjit'; choose from jit, pmap"):
    make_engine(lambda axis: None, mode='pjit', fsdp=1, seed=0)
  with pytest.raises(UserError, match='fsdp=2 needs parallel.mode=jit'):
    make_engine(lambda axis: None, mode='pmap', fsdp=2, seed=0)
