"""Rows of a benchmark say what they are; a slower one is found, and what is no measure of it is said."""

import copy
import functools
import itertools
import json
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import labels, timing, weights
from jaxface.benchmark import command as benchmark_module
from jaxface.benchmark import meter, training
from jaxface.benchmark.command import benchmark
from jaxface.benchmark.compare import LAYOUT, compare, read_report
from jaxface.benchmark.meter import Meter, Program, compile_program, slug
from jaxface.benchmark.training import make_engine, random_batch
from jaxface.chips import CHIPS, Chip
from jaxface.cli import main
from jaxface.errors import UserError
from jaxface.speed import for_speed, never_trained
from jaxface.tasks import make_task
from tests.smoke import EXPERIMENT, TINY, experiment, make_tiny_or_task, smoke_config


def _row(timed, rate, batch_size=8, devices=1):
  spread = {'median': 8 / rate, 'p10': 7 / rate, 'p90': 9 / rate, 'mean': 8 / rate}
  return {
    'timed': timed,
    'batch_size': batch_size,
    'devices': devices,
    'images_per_second': rate,
    'seconds_per_call': spread,
  }


@pytest.fixture
def report():
  return {
    'layout': LAYOUT,
    'environment': {
      'packages': {'jax': '0.10.2'},
      'backend': 'cpu',
      'devices': ['cpu 0'],
      'processor': 'P',
      'cpu_cores': 2,
    },
    'config': {'batch_size': 8, 'model': {'dtype': 'float32'}, 'log_steps': 10},
    'rows': [_row('train', 100.0), _row('train', 60.0, batch_size=4), _row('draw', 10.0)],
  }


def test_a_row_is_slower_past_the_allowed_share_and_only_then(report):
  now = copy.deepcopy(report)
  now['rows'][0]['images_per_second'] = 91.0
  now['rows'][1]['images_per_second'] = 53.0
  found = compare(now, report)
  assert found.slower == ['train, batch 4, devices 1']
  assert found.matched == 3
  assert '0.910' in found.text
  assert '0.883' in found.text
  assert '25% and  25%' in found.text
  assert not compare(now, report, slow_down=0.2).slower


def test_what_is_allowed_is_a_share_of_the_earlier_rate(report):
  now = copy.deepcopy(report)
  now['rows'][0]['images_per_second'] = 90.5
  assert not compare(now, report).slower
  assert not compare(report, report, slow_down=0.0).slower
  benchmark_module.check_slow_down(0.0)


@pytest.mark.parametrize('key', ['batch_size', 'accumulate_steps', 'steps_per_dispatch'])
def test_what_a_step_depends_on_is_another_configuration(report, key):
  now = copy.deepcopy(report)
  report['config'][key], now['config'][key] = 2, 4
  assert f'another configuration: {key}: 2 -> 4' in compare(now, report).text


def test_rows_are_matched_by_name_batch_and_devices_and_the_others_named(report):
  now = copy.deepcopy(report)
  now['rows'][0]['devices'] = 4
  found = compare(now, report)
  assert found.matched == 2
  assert 'not in the earlier result: train, batch 8, devices 4' in found.text
  assert 'not measured now: train, batch 8, devices 1' in found.text


def test_a_row_that_the_device_has_not_the_memory_for_any_more_is_slower(report):
  for row, part in zip(report['rows'], ('train', 'train', 'draw'), strict=True):
    row['part'] = part
  now = copy.deepcopy(report)
  del now['rows'][1:]
  # As with --only train: what was not asked for is no fault.
  assert not compare(now, report).slower
  now['without_memory'] = ['train']
  found = compare(now, report)
  assert found.slower == ['train, batch 4, devices 1']
  assert 'the device has not the memory now: train, batch 4, devices 1' in found.text
  assert 'not measured now: draw, batch 8, devices 1' in found.text
  report['rows'][1]['devices'] = 2
  assert not compare(now, report).slower


@pytest.mark.parametrize(
  ('change', 'said'),
  [
    (lambda r: r['environment'].update(devices=['TPU v4 0']), 'other devices: cpu earlier, TPU v4 now'),
    (lambda r: r['environment'].update(cpu_cores=64), 'another machine: P with 2 cores earlier, P with 64 cores now'),
    (lambda r: r['config']['model'].update(dtype='bfloat16'), 'model.dtype: float32 -> bfloat16'),
  ],
)
def test_what_is_no_measure_of_the_code_fails_nothing(report, change, said):
  now = copy.deepcopy(report)
  now['rows'][0]['images_per_second'] = 1.0
  change(now)
  found = compare(now, report)
  assert not found.slower
  assert said in found.text
  assert '0.010' in found.text


def test_versions_and_idle_keys_do_not_excuse_a_slow_row(report):
  now = copy.deepcopy(report)
  now['rows'][0]['images_per_second'] = 1.0
  now['config']['log_steps'] = 1
  now['environment']['packages']['jax'] = '0.11.0'
  found = compare(now, report)
  assert found.slower == ['train, batch 8, devices 1']
  assert 'jax 0.10.2 -> 0.11.0' in found.text


_DAMAGES = (
  lambda report: report['rows'][0].pop('images_per_second'),
  lambda report: report['rows'][0].update(seconds_per_call=0.1),
  lambda report: report['rows'][0].update(images_per_second=0),
  lambda report: report['environment'].pop('packages'),
  lambda report: report.update(rows='train', config={}),
  lambda report: report.update(config=[]),
)


def test_files_that_are_no_result_are_told_apart(report, tmp_path):
  path = tmp_path / 'earlier.json'
  with pytest.raises(UserError, match='No such file'):
    read_report(path)
  path.write_text('{')
  with pytest.raises(UserError, match='is no JSON'):
    read_report(path)
  path.write_text('{"rows": []}')
  with pytest.raises(UserError, match="no benchmark's result"):
    read_report(path)
  path.write_text(json.dumps(report))
  assert read_report(path) == report
  for damage in _DAMAGES:
    damaged = copy.deepcopy(report)
    damage(damaged)
    path.write_text(json.dumps(damaged))
    with pytest.raises(UserError, match="no benchmark's result"):
      read_report(path)
  del report['layout']
  path.write_text(json.dumps(report))
  with pytest.raises(UserError, match='is of layout 1'):
    read_report(path)


def test_a_row_has_its_rate_spread_and_trace(tmp_path):
  x = jnp.ones((4, 64, 64))
  program = compile_program(jax.jit(lambda x: x @ x), x)
  np.testing.assert_allclose(program.tflop * 1e12, 2 * 4 * 64**3)
  row = Meter(0.01, tmp_path).row('product, of squares', lambda: program.run(x), images=4, program=program)
  spread = row['seconds_per_call']
  assert 0 < spread['p10'] <= spread['median'] <= spread['p90']
  np.testing.assert_allclose(row['images_per_second'], 4 / spread['median'])
  assert slug(row) == 'product_of_squares_batch_4_on_1'
  assert list((tmp_path / slug(row)).rglob('*.xplane.pb'))


class _Device:
  """A device by the clock on its wall: calls come back at once, their results later, one after the other."""

  def __init__(self, monkeypatch, seconds):
    self.now, self.free, self.seconds = 0.0, 0.0, iter(seconds)
    for module in (meter, timing):
      monkeypatch.setattr(module, 'time', types.SimpleNamespace(perf_counter=lambda: self.now))

  def __call__(self):
    self.free = max(self.free, self.now) + next(self.seconds)
    return types.SimpleNamespace(block_until_ready=functools.partial(self._wait, self.free))

  def _wait(self, until):
    self.now = max(self.now, until)


def test_a_call_that_warms_up_is_not_timed(monkeypatch):
  call = _Device(monkeypatch, itertools.chain([50.0], itertools.repeat(2.0)))
  row = Meter(6.0).row('a', call, images=6, steps=3)
  spread = row['seconds_per_call']
  assert (spread['median'], row['images_per_second'], row['steps_per_second']) == (2.0, 3.0, 1.5)
  # And the clock stops when the last one is done, however long the queue.
  assert (spread['p90'], spread['mean']) == (2.0, 2.0)


def test_a_stream_is_told_by_the_mean_and_costs_by_the_call(monkeypatch):
  times = meter._Times([1.0, 1.0, 4.0], mean=2.0, calls=3)
  monkeypatch.setattr(meter, '_time', lambda call, seconds: times)
  kind = jax.devices()[0].device_kind
  monkeypatch.setitem(CHIPS, kind, Chip({'float32': 1e12, 'bfloat16': 4e12}))
  program = Program(run=None, devices=2, tflop=6.0, memory_gib=1.5, compile_seconds=7.0)
  row = Meter(1.0).row('a', None, images=8, program=program, steps=4)
  assert (row['images_per_second'], row['images_per_second_per_device'], row['steps_per_second']) == (8.0, 4.0, 4.0)
  # 6 TFLOP by two devices in a second.
  assert (row['model_tflop_per_step'], row['share_of_peak']) == (1.5, 3.0)
  assert (row['memory_gib_per_device'], row['compile_seconds']) == (1.5, 7.0)
  assert Meter(1.0).row('a', None, images=8, program=program, dtype='bfloat16')['share_of_peak'] == 0.75
  assert Meter(1.0).row('a', None, images=8, program=program, dtype='float8')['share_of_peak'] is None
  assert Meter(1.0).row('a', None, images=8, stream=True)['images_per_second'] == 4.0


def test_in_turn_the_row_is_ours_and_the_ratio_is_how_much_faster_it_is(monkeypatch):
  seconds = {'ours': iter([50.0, 1.0, 1.0, 1.0, 1.0]), 'theirs': iter([90.0, 3.0, 3.0, 3.0, 3.0])}
  clock = _Device(monkeypatch, [])

  def call(whose):
    clock.now += next(seconds[whose])

  row = Meter(0.0).row_in_turn('a', lambda: call('ours'), lambda: call('theirs'), peer='peer', images=2)
  assert (row['images_per_second'], row['times_as_fast_as_peer']) == (2.0, 3.0)
  # The first of each compiles.
  assert (row['seconds_per_call']['mean'], row['peer_seconds_per_call']['mean'], row['calls']) == (1.0, 3.0, 3)


def test_memory_that_is_given_away_counts_once():
  x = jnp.ones((256, 1024))
  program = compile_program(jax.jit(lambda x: x + 1, donate_argnums=0), x)
  assert program.memory_gib == pytest.approx(2**-10, rel=0.01)


def test_what_a_loop_of_unknown_length_hides_is_unknown():
  x = jnp.ones((4, 4))
  until = jax.jit(lambda x: jax.lax.while_loop(lambda x: x.sum() < 1e3, lambda x: x @ x, x))
  row = Meter(0.01).row('a', lambda: x, images=1, program=compile_program(until, x))
  assert row['model_tflop'] is None
  assert row['share_of_peak'] is None


def test_a_system_in_use_on_one_device_and_on_all(tmp_path, capsys):
  out = tmp_path / 'rows.json'
  assert benchmark(smoke_config('mask_l1'), only=['sample'], out=out, seconds=0.01)
  rows = json.loads(out.read_text())['rows']
  assert [(row['batch_size'], row['devices']) for row in rows] == [(1, 1), (8, 1), (64, 8)]
  for row in rows:
    assert row['timed'] == 'vae, float32: sample'
    np.testing.assert_allclose(row['images_per_second_per_device'] * row['devices'], row['images_per_second'])


def test_a_benchmark_beside_an_earlier_one(data_dir, tmp_path, capsys):
  config, out = smoke_config('mask_l1', data_dir), tmp_path / 'rows.json'
  measure = lambda **options: benchmark(config, only=['loader'], seconds=0.01, **options)
  assert measure(out=out)
  written = json.loads(out.read_text())
  verdicts = []
  for factor in (1e-3, 1e3):
    changed = copy.deepcopy(written)
    changed['rows'][0]['images_per_second'] *= factor
    out.write_text(json.dumps(changed))
    verdicts.append(measure(against=out))
  assert verdicts == [True, False]
  assert 'SLOWER' in capsys.readouterr().out
  changed['rows'][0]['devices'] = 99
  out.write_text(json.dumps(changed))
  with pytest.raises(UserError, match='none of the rows'):
    measure(against=out)
  with pytest.raises(UserError, match='--slow-down 1.5'):
    measure(slow_down=1.5)


def test_a_part_without_memory_fails_beside_an_earlier_one(data_dir, tmp_path, monkeypatch, capsys):
  config, out = smoke_config('mask_l1', data_dir), tmp_path / 'rows.json'
  measure = lambda **options: benchmark(config, only=['loader'], seconds=0.01, **options)
  assert measure(out=out)
  assert [row['part'] for row in json.loads(out.read_text())['rows']] == ['loader']

  def out_of_memory(*_):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory')

  monkeypatch.setattr(benchmark_module, 'loader_row', out_of_memory)
  assert not measure(against=out)
  assert 'the device has not the memory now: loader alone' in capsys.readouterr().out
  assert measure(out=out)
  assert json.loads(out.read_text())['without_memory'] == ['loader']


def test_data_that_is_not_there_stops_only_what_was_asked_for(tmp_path, monkeypatch, capsys):
  plans = []
  monkeypatch.setattr(benchmark_module, '_measure', lambda plan, meter: plans.append(plan) or ([], []))
  config = smoke_config('mask_l1', tmp_path)
  benchmark(config)
  assert 'train' in plans[0].parts
  assert 'loader' not in plans[0].parts
  assert 'left out: loader, resident' in capsys.readouterr().out
  with pytest.raises(UserError, match='jaxface prepare'):
    benchmark(config, only=['loader'])
  for key in ('batch_size', 'steps_per_dispatch', 'accumulate_steps'):
    config = smoke_config('mask_l1', tmp_path)
    config[key] = 0
    with pytest.raises(UserError, match=f'{key}=0; it must be at least 1'):
      benchmark(config)


def test_speed_needs_no_weights():
  config = experiment('vqgan', 'published')
  config.loss.perceptual = 'lpips-vgg'
  fast = for_speed(config)
  assert config.loss.perceptual == 'lpips-vgg'
  assert never_trained(fast) == ['loss.perceptual=untrained:lpips-vgg']
  assert make_task(fast).frozen['params']['backbone']['conv5_3']['kernel'].shape == (3, 3, 512, 512)
  config = experiment('scadm', 'published')
  config.first_stage.workdir = ''
  assert never_trained(for_speed(config)) == ['first_stage.workdir=random']
  config.first_stage.workdir = 'runs/vqgan'
  assert for_speed(config).first_stage.workdir == 'runs/vqgan'
  assert weights.load('untrained:vgg19').variables['params']['conv4_1']['kernel'].shape == (3, 3, 256, 512)
  with pytest.raises(UserError, match="unknown network 'vgg20'"):
    weights.load('untrained:vgg20')


def test_a_network_of_several_levels_is_the_same_configuration_again(tmp_path, monkeypatch, capsys):
  """JSON has no tuples: one that is no list any more would be another configuration, which excuses everything."""
  rows = [_row('train', 100.0)]
  monkeypatch.setattr(benchmark_module, '_measure', lambda plan, meter: (rows, []))
  config, out = experiment('vqgan', 'published'), tmp_path / 'rows.json'
  assert isinstance(config.model.multipliers, tuple)
  config.data.data_dir = str(tmp_path)
  assert benchmark(config, out=out)
  rows[0] = _row('train', 50.0)
  assert not benchmark(config, against=out)
  assert 'another configuration' not in capsys.readouterr().out


def test_another_host_of_the_same_accelerator_is_no_excuse(report):
  report['environment'].update(backend='tpu', devices=['TPU v4 0'])
  now = copy.deepcopy(report)
  now['environment']['cpu_cores'] = 64
  now['rows'][0]['images_per_second'] = 50.0
  assert compare(now, report).slower == ['train, batch 8, devices 1']


def test_another_failure_than_of_memory_is_told(data_dir, monkeypatch):
  def fail(*_):
    raise jax.errors.JaxRuntimeError('INTERNAL: lost')

  monkeypatch.setattr(benchmark_module, 'loader_row', fail)
  with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'):
    benchmark(smoke_config('mask_l1', data_dir), only=['loader'])
  with pytest.raises(UserError, match='--seconds 0'):
    benchmark(smoke_config('mask_l1', data_dir), only=['loader'], seconds=0.0)


def test_all_that_is_said_reaches_the_benchmark(monkeypatch):
  asked = []
  monkeypatch.setattr(benchmark_module, 'benchmark', lambda config, **options: asked.append((config, options)))
  words = ['benchmark', '--config', f'{EXPERIMENT}:mask_l1,smoke', '--only', 'ssim,conv', '--seconds', '3']
  words += ['--out', 'a', '--compare', 'b', '--profile', 'c', '--slow-down', '0.3', '--data-dir', 'd']
  # What is slower is told by the status.
  assert main([*words, '--config.seed=7']) == 1
  ((config, options),) = asked
  assert (config.seed, config.data.data_dir) == (7, 'd')
  assert options == {
    'only': ['ssim', 'conv'], 'out': Path('a'), 'seconds': 3.0, 'profile': Path('c'), 'against': Path('b'),
    'slow_down': 0.3,
  }  # fmt: skip


def test_an_accelerator_is_measured_in_both_precisions(monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
  dtypes = []
  note = lambda meter, config, devices: dtypes.append(config.model.dtype)
  monkeypatch.setattr(benchmark_module, 'evaluate_row', note)
  for _, measure in benchmark_module._Plan(smoke_config('mask_l1'), ['evaluate'], None):
    measure(None)
  assert dtypes == ['float32', 'bfloat16']


def test_a_row_counts_the_pictures_of_all_its_steps(monkeypatch):
  config, rows = smoke_config('mask_l1'), {}
  config.model.image_size, config.steps_per_dispatch, config.parallel.fsdp = TINY, 3, 4
  monkeypatch.setattr(training, 'make_task', make_tiny_or_task)
  monkeypatch.setattr(training, 'compile_program', lambda *_, **options: options)
  meter = types.SimpleNamespace(row=lambda timed, call, **told: rows.update(told))
  training.train_row(meter, config, jax.devices())
  assert (rows['images'], rows['steps'], rows['batch_size'], rows['program']) == (24, 3, 8, {'devices': 8})
  engine = make_engine(config, jax.devices())
  assert dict(engine.mesh.shape) == {'data': 2, 'fsdp': 4}
  assert dict(make_engine(config, jax.devices()[:1]).mesh.shape) == {'data': 1, 'fsdp': 1}


def test_rows_of_noise_have_labels_that_there_are():
  config = experiment('bisenet', 'celebamask_hq')
  label = random_batch(config, make_engine(config, jax.devices()[:1]), 2)['label']
  assert label.min() == 0
  assert label.max() == labels.NUM_CLASSES - 1
