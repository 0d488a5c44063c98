"""The loop's promises: resumed equals uninterrupted, damage and preemption are survived, wrong numbers stop it."""

import errno
import fcntl
import functools
import json
import math
import os
import re
import shutil
import signal
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import figures, input_pipeline
from jaxface import workdir as workdirs
from jaxface.checkpoint import Checkpoints, restore_for_evaluation
from jaxface.errors import UserError
from jaxface.evaluate import _mean_and_spread, evaluate_runs, evaluate_state, joint_protocol, table
from jaxface.input_pipeline import open_dataset
from jaxface.pictures import read_picture
from jaxface.runlog import RunLog, read_metrics
from jaxface.runs import load_run
from jaxface.state import TrainState
from jaxface.train import NonFiniteError, _Due, _first_state, _Loop, _Pending, _what_is_due, train
from tests.smoke import TINY, saved_state, shared_engine, short_config

pytestmark = pytest.mark.usefixtures('shared_engines')


def _assert_same_bits(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


def _config(data_dir):
  config = short_config(data_dir)
  config.model.image_size = TINY
  return config


@pytest.fixture
def config(data_dir):
  return _config(data_dir)


@pytest.fixture(scope='module')
def whole_run(data_dir, tmp_path_factory):
  """A run of six steps, never interrupted, with a checkpoint every second step; and its configuration."""
  config = _config(data_dir)
  config.eval_steps = config.render_steps = 4
  workdir = tmp_path_factory.mktemp('runs') / 'whole'
  outcome = train(config, workdir, quiet=True)
  assert outcome.finished
  assert outcome.step == 6
  return workdir, config


@pytest.fixture(scope='module')
def whole_state(whole_run):
  """What that run ended with."""
  return saved_state(*whole_run, 6)


def _cut(whole_run, tmp_path, last_step) -> Path:
  """The run as a kill right after the checkpoint of `last_step` would have left it."""
  workdir = tmp_path / 'cut'
  shutil.copytree(whole_run[0], workdir)
  for checkpoint in (workdir / 'checkpoints').iterdir():
    if checkpoint.name.isdigit() and int(checkpoint.name) > last_step:
      shutil.rmtree(checkpoint)
  return workdir


def test_a_run_leaves_its_papers(whole_run):
  workdir, _ = whole_run
  assert workdirs.read_config(workdir).loss.name == 'l2'
  about = json.loads((workdir / 'environment.json').read_text())
  assert about['packages']['jax'] == jax.__version__
  assert len(about['devices']) == 8
  assert 'encoder/hidden/kernel' in (workdir / 'parameters.txt').read_text()
  records = read_metrics(workdir)
  assert [r['step'] for r in records if 'train/loss' in r] == [1, 2, 3, 4, 5, 6]
  assert [r['step'] for r in records if 'validation/loss' in r] == [4, 6]
  assert (workdir / 'losses.png').stat().st_size > 1000
  assert sorted(p.name for p in (workdir / 'pictures').iterdir()) == ['step_00000004.png', 'step_00000006.png']
  assert list((workdir / 'tensorboard').glob('events.*'))


@pytest.mark.parametrize('last_step', [2, 4])
def test_resumed_equals_uninterrupted_to_the_bit(whole_run, whole_state, tmp_path, last_step):
  workdir, config = _cut(whole_run, tmp_path, last_step), whole_run[1]
  train(config, workdir, quiet=True)
  _assert_same_bits(saved_state(workdir, config, 6), whole_state)
  strip = lambda records: [{k: v for k, v in r.items() if 'second' not in k} for r in records]
  assert strip(read_metrics(workdir)) == strip(read_metrics(whole_run[0]))


@pytest.mark.parametrize('stopped_at', [4, 6])
def test_stopped_in_validation_it_saves_and_validates_when_it_goes_on(whole_run, tmp_path, monkeypatch, stopped_at):
  workdir, config = _cut(whole_run, tmp_path, stopped_at - 2), whole_run[1]

  def validate(engine, state, *arguments, **options):
    if int(state.step) == stopped_at:
      os.kill(os.getpid(), signal.SIGTERM)
    return evaluate_state(engine, state, *arguments, **options)

  with monkeypatch.context() as patched:
    patched.setattr('jaxface.train.evaluate_state', validate)
    outcome = train(config, workdir, quiet=True)
  assert (outcome.step, outcome.finished) == (stopped_at, False)
  assert 'validation/loss' not in read_metrics(workdir)[-1]
  with Checkpoints(workdir, read_only=True) as checkpoints:
    assert checkpoints.steps[-1] == stopped_at

  outcome = train(config, workdir, quiet=True)
  assert (outcome.step, outcome.finished) == (6, True)
  without_speed = lambda run: [{k: v for k, v in r.items() if 'second' not in k} for r in read_metrics(run)]
  assert without_speed(workdir) == without_speed(whole_run[0])
  names = [{path.name for path in (run / 'pictures').iterdir()} for run in (workdir, whole_run[0])]
  assert names[0] == names[1]
  with Checkpoints(workdir, read_only=True) as ours, Checkpoints(whole_run[0], read_only=True) as expected:
    assert (ours.steps, ours.best_step) == (expected.steps, expected.best_step)
  assert train(config, workdir, quiet=True).metrics == outcome.metrics


def test_a_run_goes_on_only_with_the_data_it_began_with(whole_run, data_dir):
  config = whole_run[1]
  abstract = shared_engine(config).abstract_saved
  began_with = open_dataset(
    config.data.name, config.data.train_split, ('image',), image_size=TINY, data_dir=data_dir
  ).fingerprint
  with Checkpoints(whole_run[0], read_only=True) as checkpoints:
    with pytest.raises(UserError, match=f'trained on {began_with} and the data is now prepared otherwise since'):
      checkpoints.restore_latest(abstract, began_with[:-8] + '00000000')
    with pytest.raises(UserError, match='and the data is now face_folder/mine'):
      checkpoints.restore_latest(abstract, 'face_folder/mine/1.0.0/train/32#00000000')


def test_runs_of_before_data_had_digits_go_on(config, tmp_path):
  engine = shared_engine(config)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, engine.to_saved(engine.init()), next_batch=1, fingerprint='faces/1.0.0/train/32')
    checkpoints.wait()
    assert checkpoints.restore_latest(engine.abstract_saved, 'faces/1.0.0/train/32#01234567')[1] == 1
    with pytest.raises(UserError, match='choose another --workdir'):
      checkpoints.restore_latest(engine.abstract_saved, 'faces/1.0.0/train/33#01234567')


def test_a_run_goes_on_on_other_devices_and_by_pmap(whole_run, whole_state, tmp_path):
  workdir, config = _cut(whole_run, tmp_path, 4), whole_run[1].copy_and_resolve_references()
  config.parallel.mode = 'pmap'
  train(config, workdir, quiet=True)
  expected, got = whole_state, saved_state(workdir, config, 6)
  assert int(got.step) == 6
  # Another order of sums, two steps of it; the recipe's optimizer makes much of the last digit of a tiny gradient.
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), got.params, expected.params)
  saved, step = restore_for_evaluation(workdir, shared_engine(whole_run[1]).abstract_saved, 'latest')
  assert step == 6
  _assert_same_bits(jax.tree.map(np.asarray, saved.params), got.params)


def test_a_damaged_newest_checkpoint_is_passed_over(whole_run, whole_state, tmp_path, caplog):
  workdir, config = _cut(whole_run, tmp_path, 6), whole_run[1]
  for part in (workdir / 'checkpoints' / '6' / 'state' / 'd').iterdir():
    part.write_bytes(b'nonsense')
  train(config, workdir, quiet=True)
  # The files' error, not Orbax's about its choice of how to read them.
  assert re.search(r'checkpoint .*/6 cannot be read \(ValueError: .*trying the one before', caplog.text)
  _assert_same_bits(saved_state(workdir, config, 6), whole_state)


def test_steps_left_that_are_no_whole_dispatch_are_taken(whole_run, whole_state, tmp_path):
  workdir, config = _cut(whole_run, tmp_path, 2), whole_run[1].copy_and_resolve_references()
  config.steps_per_dispatch, config.eval_steps, config.render_steps = 3, 0, 0  # Four steps are left: three and one.
  outcome = train(config, workdir, quiet=True)
  assert (outcome.step, outcome.finished) == (6, True)
  # Another program rounds otherwise, and the recipe's optimizer makes much of a last digit.
  got = saved_state(workdir, config, 6).params
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), got, whole_state.params)
  assert [record['step'] for record in read_metrics(workdir) if 'train/loss' in record] == [1, 2, 5, 6]


def test_a_cut_off_line_of_metrics_is_forgotten(whole_run, tmp_path):
  workdir, config = _cut(whole_run, tmp_path, 6), whole_run[1]
  with open(workdir / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 7, "train/lo')
  assert train(config, workdir, quiet=True).metrics.keys() >= {'loss'}
  assert read_metrics(workdir) == read_metrics(whole_run[0])


@pytest.mark.parametrize(('best_is', 'best_of'), [('lowest', min), ('highest', max)])
def test_best_and_last_are_kept(config, tmp_path, best_is, best_of):
  # The loss falls: the lowest is the last one's, the highest the first one's.
  config.total_steps, config.eval_steps, config.keep_last, config.best_is = 6, 2, 1, best_is
  train(config, tmp_path / 'run', quiet=True)
  scores = {r['step']: r['validation/loss'] for r in read_metrics(tmp_path / 'run') if 'validation/loss' in r}
  with Checkpoints(tmp_path / 'run', read_only=True) as checkpoints:
    best = best_of(scores, key=scores.get)
    assert checkpoints.steps == sorted({best, 6})
    assert checkpoints.best_step == best
  assert load_run(tmp_path / 'run').step == best
  assert load_run(tmp_path / 'run', 'latest').step == 6
  with pytest.raises(UserError, match=r"no checkpoint '5' .*choose best, latest or one of \["):
    load_run(tmp_path / 'run', '5')


def test_what_validation_did_not_measure_is_neither_best_nor_worst(config, tmp_path, monkeypatch):
  # A class may be in no picture, and nothing is better or worse than NaN.
  found = iter([{'loss': 1.0}, {'loss': math.nan}, {}])
  monkeypatch.setattr('jaxface.train.evaluate_state', lambda *a, **k: next(found))
  config.total_steps, config.eval_steps, config.checkpoint_steps, config.keep_last = 6, 2, 2, 1
  train(config, tmp_path / 'run', quiet=True)
  with Checkpoints(tmp_path / 'run') as checkpoints:
    assert (checkpoints.steps, checkpoints.best_step) == ([2, 6], 2)


@pytest.mark.parametrize(('folder', 'path'), [('.', '.'), ('checkpoints', '..'), ('..', 'whole')])
def test_a_run_has_its_folders_name_from_wherever_it_is_named(whole_run, monkeypatch, folder, path):
  monkeypatch.chdir(whole_run[0] / folder)
  assert load_run(Path(path)).name == 'whole'


def test_a_loss_that_is_no_number_stops_the_run_by_name(config, tmp_path):
  # At the recipe's own rate it is the run of the other tests.
  config.optimizer.learning_rate = 1e30
  with pytest.raises(NonFiniteError, match=r'\w+ became (nan|inf|-inf) at step [23]; last good checkpoint'):
    train(config, tmp_path / 'run', quiet=True)


@pytest.mark.parametrize(('decay', 'told'), [('cosine', True), ('constant', False)])
def test_another_number_of_steps_is_told_to_change_the_learning_rate(whole_run, tmp_path, caplog, decay, told):
  workdir, config = _cut(whole_run, tmp_path, 6), whole_run[1].copy_and_resolve_references()
  config.optimizer.decay = decay
  (workdir / 'config.json').write_text(config.to_json())
  train(config, workdir, quiet=True)
  assert 'total_steps' not in caplog.text
  config.total_steps = 4
  assert train(config, workdir, quiet=True).step == 6
  assert ('total_steps was 6 and is 4' in caplog.text) == told


def test_weights_of_another_run_start_a_new_one(whole_run, config, tmp_path):
  config.init_from = str(whole_run[0])
  config.total_steps = 1
  train(config, tmp_path / 'next', quiet=True)
  best = load_run(whole_run[0]).state.params
  # One step of Adam's goes as far as the learning rate at most.
  close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1.1 * config.optimizer.learning_rate)
  jax.tree.map(close, saved_state(tmp_path / 'next', config, 1).params, jax.tree.map(np.asarray, best))


def test_weights_start_a_run_of_another_optimizer_that_averages(whole_run, config, tmp_path):
  config.init_from = str(whole_run[0])
  config.total_steps = 1
  config.optimizer.name, config.optimizer.clip_each, config.optimizer.learning_rate = 'sgd', 0.0, 0.0
  config.ema_decay = 0.5
  train(config, tmp_path / 'next', quiet=True)
  best = jax.tree.map(np.asarray, load_run(whole_run[0]).state.params)
  state = saved_state(tmp_path / 'next', config, 1)
  for copy in (state.params, state.ema):
    jax.tree.map(np.testing.assert_array_equal, copy, best)


def test_weights_of_another_system_are_refused(whole_run, config, tmp_path):
  workdir = _cut(whole_run, tmp_path, 6)
  (workdir / 'config.json').write_text((workdir / 'config.json').read_text().replace('"vae"', '"parsing"'))
  config.init_from = str(workdir)
  with pytest.raises(UserError, match="is a run of task 'parsing'; this one is of 'vae'"):
    train(config, tmp_path / 'next', quiet=True)


def test_weights_of_another_network_are_refused(whole_run, config, tmp_path):
  config.init_from, config.model.latent_dim = str(whole_run[0]), 9
  with pytest.raises(UserError, match=r'is of another network: \S+ is \(.*8,?\) there, \(.*9,?\) here'):
    train(config, tmp_path / 'next', quiet=True)


def test_a_workdir_without_weights_is_refused_and_not_made(config, tmp_path):
  config.init_from = str(tmp_path / 'typo')
  with pytest.raises(UserError, match='typo holds no run'):
    train(config, tmp_path / 'next', quiet=True)
  assert not (tmp_path / 'typo').exists()


def test_evaluation_is_the_same_for_any_batch_size(whole_run, data_dir, capsys):
  results = [evaluate_runs([whole_run[0]], batch_size=rows, out=whole_run[0] / str(rows)) for rows in (8, 16)]
  for name, value in results[0]['whole'].items():
    np.testing.assert_allclose(results[1]['whole'][name], value, rtol=1e-5, atol=2e-6, err_msg=name)
  assert 'true_mask' in capsys.readouterr().out
  assert (whole_run[0] / '8' / 'comparison.png').is_file()
  assert json.loads((whole_run[0] / '8' / 'results.json').read_text())['protocol']['examples'] == 6


def test_what_differs_between_runs_is_told_of_each():
  runs = {
    'a': {'dataset': 'faces', 'examples': 6, 'ssim': 'window 11'},
    'b': {'dataset': 'faces', 'examples': 8, 'mask': 'above 0.5'},
  }
  expected = {'dataset': 'faces', 'examples (a)': 6, 'examples (b)': 8}
  assert joint_protocol(runs) == expected | {'ssim (a)': 'window 11', 'mask (b)': 'above 0.5'}
  assert joint_protocol({'a': runs['a']}) == runs['a']


class _Counts:
  """In the place of an engine and its task: an example's figure is its number times the one parameter."""

  task = property(lambda self: self)
  put = staticmethod(lambda batch: batch)
  metrics_on_host = staticmethod(lambda metrics: metrics)
  summary = staticmethod(lambda means: means)

  def eval_step(self, state, batch):
    return {'figure': state.params * (batch['number'] * batch['weight']).sum(), 'count': batch['weight'].sum()}


def test_evaluation_is_the_mean_over_real_rows_of_what_the_averaged_parameters_do(monkeypatch):
  numbers, weights = np.float32([[1, 2], [6, 9]]), np.float32([[1, 1], [1, 0]])
  batches = [{'number': n, 'weight': w} for n, w in zip(numbers, weights, strict=True)]
  monkeypatch.setattr(input_pipeline, 'eval_batches', lambda *_, **__: iter(batches))
  state = TrainState(3, params=1.0, model_state=None, opt_state=None, ema=10.0)
  assert evaluate_state(_Counts(), state, None, batch_size=2) == {'figure': pytest.approx(10 * 9 / 3)}
  assert evaluate_state(_Counts(), state.replace(ema=None), None, batch_size=2) == {'figure': pytest.approx(9 / 3)}


def test_the_spread_over_draws_is_that_of_a_sample():
  draws = [{'transfer, lips/l1': value, 'loss': value} for value in (1.0, 2.0, 4.0)]
  wanted = {'transfer, lips/l1': 7 / 3, 'loss': 7 / 3, 'transfer, lips (sd)/l1': (7 / 3) ** 0.5}
  assert _mean_and_spread(draws) == pytest.approx(wanted)
  assert _mean_and_spread(draws[:1]) == draws[0]


def test_runs_of_other_data_and_size_are_compared_as_they_are(whole_run, data_dir, makeup_dir, tmp_path):
  other = _config(makeup_dir)
  other.data.name, other.model.image_size, other.total_steps = 'synthetic_faces/makeup_16', 16, 1
  train(other, tmp_path / 'other', quiet=True)
  evaluate_runs([whole_run[0], tmp_path / 'other'], checkpoint='latest', out=tmp_path)
  told = json.loads((tmp_path / 'results.json').read_text())['protocol']
  assert told['dataset (whole)'].startswith('synthetic_faces/faces_16/')
  assert told['dataset (other)'].startswith('synthetic_faces/makeup_16/')
  figure = read_picture(tmp_path / 'comparison.png')
  # Given and made of each, at the larger size.
  assert figure.shape[1] == figures.titled_columns({n: np.zeros((1, 16, 16, 3)) for n in 'abcd'}).shape[1]


def test_wrong_evaluations_are_refused_before_anything_is_measured(whole_run, tmp_path, monkeypatch):
  monkeypatch.setattr('jaxface.evaluate.evaluate_state', lambda *_, **__: pytest.fail('measured'))
  (tmp_path / 'file').write_text('')
  for options, told in (
    ({'draws': -1}, 'draws=-1'),
    ({'draws': 2}, 'whole takes no references'),
    ({'batch_size': 0}, 'batch_size=0 does not divide over'),
    ({'out': tmp_path / 'file'}, 'cannot write'),
  ):
    with pytest.raises(UserError, match=told):
      evaluate_runs([whole_run[0]], **options)


@pytest.mark.parametrize('text', ['{"architecture": "bert"}', '[1]', '{"task": "va'])
def test_what_is_no_run_of_ours_is_refused(tmp_path, text):
  (tmp_path / 'config.json').write_text(text)
  with pytest.raises(UserError, match=r'config.json is no configuration of a jaxface run'):
    workdirs.read_config(tmp_path)


def test_a_run_that_saved_nothing_may_be_configured_anew(config, tmp_path):
  workdirs.open_run(tmp_path, config)
  config.batch_size = 16
  assert workdirs.open_run(tmp_path, config) is None
  assert workdirs.read_config(tmp_path).batch_size == 16
  (tmp_path / 'checkpoints' / '2').mkdir(parents=True)
  config.batch_size = 8
  with pytest.raises(UserError, match='another configuration'):
    workdirs.open_run(tmp_path, config)


def test_numbers_that_cannot_be_are_refused(config, tmp_path):
  for key, value in (('seed', -1), ('eval_batches', -3), ('ema_decay', 2.0), ('log_steps', 0)):
    wrong = config.copy_and_resolve_references()
    wrong[key] = value
    with pytest.raises(UserError, match=f'{key}={value}'):
      train(wrong, tmp_path / 'run', quiet=True)


def test_another_configuration_is_refused(whole_run):
  config = whole_run[1].copy_and_resolve_references()
  config.model.latent_dim = 9
  with pytest.raises(UserError, match=r'another configuration \(model.latent_dim: 8 -> 9\); choose another --workdir'):
    train(config, whole_run[0], quiet=True)


def test_a_workdir_in_use_is_refused(whole_run):
  with workdirs.locked(whole_run[0]), pytest.raises(UserError, match='in use by another run'):
    train(whole_run[1], whole_run[0], quiet=True)


def test_too_small_a_disk_is_refused_before_anything_is_computed(config, tmp_path, monkeypatch):
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(1, 1, 1000))
  with pytest.raises(UserError, match='GiB free and this run needs'):
    train(config, tmp_path / 'run', quiet=True)
  assert not (tmp_path / 'run' / 'checkpoints').exists()


def test_checkpoints_that_are_there_need_no_room(tmp_path, monkeypatch):
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(1, 1, 150))
  for kept in (1, 2):
    (tmp_path / 'checkpoints' / str(kept)).mkdir(parents=True)
  workdirs.check_disk(tmp_path, kept=2, size=100)
  with pytest.raises(UserError, match='make room'):
    workdirs.check_disk(tmp_path, kept=3, size=100)


def test_a_disk_without_locks_is_taken_as_it_is(tmp_path, monkeypatch):
  def no_locks(handle, operation):
    raise OSError(errno.ENOSYS, 'Function not implemented')

  monkeypatch.setattr(fcntl, 'flock', no_locks)
  with workdirs.locked(tmp_path / 'run'):
    assert (tmp_path / 'run').is_dir()


def test_a_run_begins_with_all_the_weights_of_another(config, tmp_path):
  config.ema_decay = 0.5
  engine = shared_engine(config)
  state = engine.to_saved(engine.init())
  filled = lambda tree, value: jax.tree.map(lambda leaf: jnp.full_like(leaf, value), tree)
  source = tmp_path / 'source'
  source.mkdir()
  workdirs.open_run(source, config)
  with Checkpoints(source) as checkpoints:
    theirs = state.replace(params=filled(state.params, 2), model_state=filled(state.model_state, 3))
    checkpoints.save(7, theirs.replace(ema=filled(state.ema, 4)), 7, 'data')
  config.init_from = str(source)
  with Checkpoints(tmp_path / 'next') as checkpoints:
    ours, step, told = _first_state(config, engine, checkpoints, types.SimpleNamespace(fingerprint='data'))
  assert (step, int(ours.step)) == (0, 0)
  assert told.endswith('step 7')
  for tree, value in ((ours.params, 2), (ours.model_state, 3), (ours.ema, 4)):
    assert all((np.asarray(leaf) == value).all() for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(('before', 'step', 'due'), [(3, 6, True), (4, 7, False), (4, 8, True), (9, 10, True)])
def test_what_falls_within_a_dispatch_is_due_after_it(config, before, step, due):
  config.total_steps, config.eval_steps, config.render_steps, config.checkpoint_steps = 10, 4, 0, 0
  found = _what_is_due(config, before, step, first=False, stop=False)
  # What was validated is saved; at the end everything is done.
  assert (found.evaluate, found.save, found.render) == (due, due, step == 10)


def test_reported_are_the_means_since_the_last_report_and_the_very_step_that_broke():
  pending = _Pending(_Counts())
  pending.add(2, 2, {'loss': np.float32([1, 2])})
  pending.add(3, 1, {'loss': np.float32([6])})
  assert pending.read() == {'loss': 3.0}
  pending.add(6, 3, {'loss': np.float32([1, np.nan, 1])})
  with pytest.raises(NonFiniteError, match='loss became nan at step 5'):
    pending.read()


def test_validation_is_as_long_as_asked_for_and_pictures_are_of_the_averaged_parameters(config, monkeypatch):
  config.eval_batches, config.best_metric, config.best_is = 3, 'ssim', 'highest'
  asked, shown, saved = [], [], []
  monkeypatch.setattr('jaxface.train.evaluate_state', lambda *_, **options: asked.append(options) or {'ssim': 0.5})
  engine = types.SimpleNamespace(to_saved=lambda state: state, render=lambda state, _: shown.append(state.params))
  log = types.SimpleNamespace(scalars=lambda *_: None, pictures=lambda *_: None)
  checkpoints = types.SimpleNamespace(save=lambda *arguments: saved.append(arguments))
  data, stop = types.SimpleNamespace(fingerprint='data'), types.SimpleNamespace(agreed=lambda: False)
  state = TrainState(4, params='now', model_state=None, opt_state=None, ema='averaged')
  loop = _Loop(config, engine, data, data, None, checkpoints, stop, log)
  assert loop._look(state, 4, _Due(evaluate=True, render=True, save=True)) == ({'ssim': 0.5}, False)
  assert (asked[0]['limit'], asked[0]['batch_size']) == (3, config.batch_size)
  assert shown == ['averaged']
  assert saved == [(4, state, 4, 'data', -0.5)]


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    ('seed', 1), ('batch_size', 16), ('accumulate_steps', 2), ('ema_decay', 0.5), ('best_metric', ''),
    ('best_is', 'highest'), ('optimizer.learning_rate', 1.0), ('loss.kl_weight', 0.0), ('augment.flip', True),
    ('model.dtype', 'bfloat16'), ('data.name', 'other'), ('data.train_split', 'test'), ('data.resize', 'area'),
  ],
)  # fmt: skip
def test_what_a_run_computes_by_may_not_change(config, key, value):
  changed = config.copy_and_resolve_references()
  changed.update_from_flattened_dict({key: value, 'total_steps': 9, 'data.workers': 2, 'parallel.fsdp': 2})
  assert [told.partition(':')[0] for told in workdirs.differences(config, changed)] == [key]


def test_the_speed_is_that_of_training_alone(tmp_path, monkeypatch):
  clock = iter([0.0, 2.0, 10.0, 14.0])
  monkeypatch.setattr('jaxface.runlog.time', types.SimpleNamespace(perf_counter=lambda: next(clock)))
  with RunLog(tmp_path, first_step=5, total_steps=99, images_per_step=8, quiet=True) as log:
    assert log.speed(5) == {}
    assert log.speed(8) == {'train/images_per_second': 3 * 8 / 2}
    log.pause()
    assert log.speed(9) == {}
    log.resume(9)
    assert log.speed(11) == {'train/images_per_second': 2 * 8 / 4}


def test_every_number_stands_under_its_name():
  results = {
    'a': {'loss': 1.5, 'whole/l1': 0.25, 'whole/ssim': 0.75, 'mask/iou': 0.5},
    'longer': {'loss': 2.5, 'whole/l1': 0.125, 'whole/ssim': 0.625},
  }
  blocks = [[line.split() for line in block.splitlines()] for block in table(results).split('\n\n')]
  assert blocks == [
    [['run', 'protocol', 'loss'], ['a', '-', '1.5000'], ['longer', '-', '2.5000']],
    [
      ['run', 'protocol', 'l1', 'ssim'],
      ['a', 'whole', '0.2500', '0.7500'],
      ['longer', 'whole', '0.1250', '0.6250'],
    ],
    [['run', 'protocol', 'iou'], ['a', 'mask', '0.5000']],
  ]


def test_evaluation_opens_what_is_asked_for(whole_run, monkeypatch):
  def load(workdir, checkpoint):
    raise UserError(f'{checkpoint} of {workdir.name}')

  monkeypatch.setattr('jaxface.evaluate.load_run', load)
  with pytest.raises(UserError, match='4 of whole'):
    evaluate_runs([whole_run[0]], checkpoint='4')
