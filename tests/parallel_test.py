"""One step, many ways to run it: all must compute the same."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxface.aot.hlo import by_kind, collectives
from jaxface.errors import UserError
from jaxface.meshes import BATCH_AXES, rows_per_device
from jaxface.models.unet_layers import Conv, GroupNorm, Linear
from jaxface.parallel import (
  JitEngine,
  PmapEngine,
  check_batch_size,
  make_engine,
  make_mesh,
  shardings_for,
)
from jaxface.state import for_evaluation
from tests.smoke import CUT_ALL, TINY, first_state, smoke_config, start_from, tiny_vae

BATCH = 8


def _batch(step: int, rows: int = BATCH) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(step)
  return {
    'image': rng.integers(0, 256, (rows, TINY, TINY, 3), np.uint8),
    'mask': rng.integers(0, 256, (rows, TINY, TINY, 1), np.uint8),
    'row': np.arange(rows, dtype=np.int32),
  }


def _config(**changes):
  config = smoke_config('mask_ssim_l2')
  # The recipe's own optimizer divides by the size of tiny gradients and would blow up rounding; this one does not.
  config.optimizer.name = 'sgd'
  config.optimizer.clip_each = 0.0
  config.optimizer.learning_rate = 0.01
  config.ema_decay = 0.9
  config.update_from_flattened_dict(changes)
  return config


@functools.cache
def _engine(mode='jit', devices=1, fsdp=1):
  """An engine, compiled once for all tests that use it."""
  engine = _new_engine(_config(), mode, devices, fsdp)
  start_from(engine, lambda: first_state(engine))
  return engine


def _new_engine(config, mode='jit', devices=1, fsdp=1):
  mesh = make_mesh(fsdp, jax.devices()[:devices])
  if mode == 'pmap':
    return PmapEngine(tiny_vae(config, PmapEngine.axis_name), seed=0, mesh=mesh)
  return JitEngine(tiny_vae(config), seed=0, mesh=mesh, rules=CUT_ALL)


def _other_engine(mode='jit', devices=1, **changes):
  """An engine for another configuration, which starts from the same state without compiling its making."""
  engine = _new_engine(_config(**changes), mode, devices)
  start_from(engine, lambda: first_state(_engine()))
  return engine


def _run(engine, steps=2, per_dispatch=1):
  """Final state, as saved, and every step's metrics."""
  state, log = engine.init(), []
  for first in range(0, steps, per_dispatch):
    batches = engine.put_stacked([_batch(first + i) for i in range(per_dispatch)])
    state, metrics = engine.train_step(state, batches, engine.dataset)
    log.append(engine.metrics_on_host(metrics))
  return engine.to_saved(state), {name: np.concatenate([m[name] for m in log]) for name in log[0]}


@pytest.fixture(scope='module')
def one_device():
  return _run(_engine())


def _assert_same(got, expected, rtol=2e-4):
  for name, values in expected[1].items():
    np.testing.assert_allclose(got[1][name], values, rtol=rtol, atol=1e-5, err_msg=name)
  host = functools.partial(jax.tree.map, np.asarray)
  chex.assert_trees_all_close(host(got[0]), host(expected[0]), rtol=rtol, atol=2e-5)


@pytest.mark.parametrize(('mode', 'fsdp'), [('jit', 1), ('jit', 4), ('pmap', 1)])
def test_eight_devices_compute_what_one_does(one_device, mode, fsdp):
  engine = _engine(mode, 8, fsdp)
  got = _run(engine)
  if fsdp > 1:
    cut = [leaf for leaf in jax.tree.leaves(got[0].params) if not leaf.sharding.is_fully_replicated]
    assert cut, 'no parameter was sharded, so nothing was tested'
  _assert_same(got, one_device)


def test_several_steps_a_dispatch_are_the_same_steps(one_device):
  _assert_same(_run(_engine(), per_dispatch=2), one_device)


def test_a_resident_dataset_gives_the_same_steps(one_device):
  engine = _other_engine('pmap', 8)
  batches = [_batch(step) for step in range(2)]
  engine.put_dataset({name: np.concatenate([b[name] for b in batches]) for name in ('image', 'mask')})
  state = engine.init()
  for step in range(2):
    index = np.arange(step * BATCH, (step + 1) * BATCH, dtype=np.int32)
    indices = engine.put_stacked([{'index': index, 'row': batches[0]['row']}])
    state, _ = engine.train_step(state, indices, engine.dataset)
  params = (jax.tree.map(np.asarray, saved.params) for saved in (engine.to_saved(state), one_device[0]))
  chex.assert_trees_all_close(*params, rtol=2e-4, atol=2e-5)


def test_accumulated_gradients_average_the_pieces(one_device):
  one, many = (_run(_other_engine(devices=devices, accumulate_steps=2)) for devices in (1, 4))
  _assert_same(many, one)
  # Each piece is normalised by itself, so the whole batch at once is close, but another computation.
  np.testing.assert_allclose(one[1]['loss'], one_device[1]['loss'], rtol=0.05)
  assert not np.array_equal(one[1]['loss'], one_device[1]['loss'])


def test_bfloat16_computes_with_float32_parameters(one_device):
  state, metrics = _run(_other_engine(**{'model.dtype': 'bfloat16'}))
  assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype('float32')}
  np.testing.assert_allclose(metrics['loss'], one_device[1]['loss'], rtol=0.02)
  assert not np.array_equal(metrics['loss'], one_device[1]['loss'])


def test_remat_changes_no_number(one_device):
  _assert_same(_run(_other_engine(**{'model.remat': True})), one_device)


@pytest.fixture(scope='module')
def measured():
  """By engine: what it measures of a batch that is not full, and its pictures."""

  @functools.cache
  def of(mode, devices):
    engine = _engine(mode, devices)
    batch = {**_batch(0), 'weight': np.array([1, 1, 1, 1, 1, 0, 0, 0], np.float32)}
    batch['image'][5:] = 7  # Filling must not matter, whatever it is.
    light = for_evaluation(engine.init())
    sums = engine.metrics_on_host(engine.eval_step(light, engine.put(batch)))
    return sums, engine.render(light, engine.put(_batch(0)))

  return of


@pytest.mark.parametrize('mode', ['jit', 'pmap'])
def test_evaluation_sums_count_only_real_rows(measured, mode):
  (expected, expected_pictures), (sums, pictures) = measured('jit', 1), measured(mode, 8)
  assert expected['count'] == 5
  for name, value in expected.items():
    np.testing.assert_allclose(sums[name], value, rtol=2e-5, err_msg=name)
  for name, value in expected_pictures.items():
    np.testing.assert_allclose(pictures[name], value, atol=2e-5, err_msg=name)


def test_pictures_are_drawn_by_the_devices_that_have_them():
  engine = _engine('jit', 8)
  given = for_evaluation(engine.init()), engine.put(_batch(0)), jax.random.key(0)
  convolutions = re.findall(r'= f32\[(\d+),[\d,]+\]\S* convolution\(', engine._render.lower(*given).compile().as_text())
  assert set(convolutions) == {'1'}


@pytest.mark.parametrize('mode', ['jit', 'pmap'])
def test_batches_are_put_on_the_devices(mode):
  engine = _engine(mode, 8)
  for batch in (engine.put(_batch(0)), engine.put_stacked([_batch(0), _batch(1)])):
    assert all(isinstance(values, jax.Array) and len(values.sharding.device_set) == 8 for values in batch.values())


def test_those_who_share_parameters_do_not_share_rows():
  mesh = make_mesh(4, jax.devices())
  engine = JitEngine(tiny_vae(_config()), seed=0, mesh=mesh)
  batch, stacked = engine.put(_batch(0)), engine.put_stacked([_batch(0), _batch(1)])
  for name, values in _batch(0).items():
    # Every device has a row of its own, and none has a copy of another's.
    assert [shard.data.shape for shard in batch[name].addressable_shards] == [(1, *values.shape[1:])] * 8
    assert [shard.data.shape for shard in stacked[name].addressable_shards] == [(2, 1, *values.shape[1:])] * 8
  large = jax.ShapeDtypeStruct((3, 3, 64, 128), jnp.float32)
  specs = jax.tree.map(lambda s: s.spec, shardings_for({'opt_state': {'mu': large}, 'ema': {'k': large}}, mesh))
  assert specs['opt_state']['mu'] == specs['ema']['k'] == P(None, None, None, 'fsdp')


def test_a_step_compiles_once():
  engine = _engine('jit', 8)
  state = engine.init()
  for step in range(3):
    state, _ = engine.train_step(state, engine.put_stacked([_batch(step)]), None)
  assert engine.train_step._cache_size() == 1


def test_a_step_lowers_from_shapes_alone():
  engine = _engine('jit', 8)
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


def test_a_step_knows_its_rows_on_a_device():
  assert rows_per_device(12) == 12
  mesh = make_mesh(2, jax.devices()[:4])
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    assert rows_per_device(12) == 3
  cut = P(BATCH_AXES)
  inside = jax.shard_map(lambda x: x + rows_per_device(len(x)), mesh=mesh, in_specs=cut, out_specs=cut)
  np.testing.assert_array_equal(inside(jnp.zeros(12)), np.full(12, 3))


class _Layers(nn.Module):
  """What a diffusion network does with a picture and a timestep."""

  @nn.compact
  def __call__(self, x, t):
    return Conv(64)(GroupNorm()(Conv(64)(x) + Linear(64)(nn.silu(Linear(64)(t)))[:, None, None]))


def test_kernels_travel_and_features_stay():
  mesh = make_mesh(4, jax.devices()[:4])
  rows, cut = NamedSharding(mesh, P(BATCH_AXES)), lambda leaf: NamedSharding(mesh, P(*[None] * (leaf.ndim - 1), 'fsdp'))
  rng = np.random.default_rng(0)
  x, t = (rng.standard_normal(shape).astype(np.float32) for shape in ((8, 8, 8, 64), (8, 64)))
  params = jax.jit(_Layers().init)(jax.random.key(0), x, t)
  cuts = jax.tree.map(lambda leaf: cut(leaf) if leaf.ndim > 1 else NamedSharding(mesh, P()), params)

  def slope(params, x, t):
    return jax.grad(lambda params: jnp.square(_Layers().apply(params, x, t)).mean())(params)

  def in_engine(*arguments):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return slope(*arguments)

  arguments = jax.device_put((params, x, t), (cuts, rows, rows))
  lowered = jax.jit(in_engine, out_shardings=cuts).lower(*arguments)
  # The four kernels are asked for whole, and so are their gradients.
  assert lowered.as_text().count('sharding_constraint') == 8
  program = lowered.compile()
  exchanges = by_kind(collectives(program.as_text()))
  assert exchanges.keys() <= {'all-gather', 'all-reduce', 'reduce-scatter'}
  assert exchanges['all-gather']['count'] == 4
  for actual, expected in zip(*map(jax.tree.leaves, (program(*arguments), jax.jit(slope)(params, x, t))), strict=True):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_wrong_numbers_say_the_right_ones():
  with pytest.raises(UserError, match='batch_size=12 .* 8 .*next that does is 16'):
    check_batch_size(12, 8)
  with pytest.raises(UserError, match=r'fsdp=3 .* 8 devices; choose from \[1, 2, 4, 8\]'):
    make_mesh(3)
  with pytest.raises(UserError, match="unknown parallel.mode 'pjit'; choose from jit, pmap"):
    make_engine(lambda axis: None, mode='pjit', fsdp=1, seed=0)
  with pytest.raises(UserError, match='fsdp=2 needs parallel.mode=jit'):
    make_engine(lambda axis: None, mode='pmap', fsdp=2, seed=0)
