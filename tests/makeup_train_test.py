"""The makeup systems in the one train loop: any devices, resumed to the bit, evaluated with drawn references."""

import functools
import json
import shutil
from contextlib import nullcontext as no_error

import chex
import jax
import numpy as np
import pytest

from jaxface import input_pipeline, labels
from jaxface.augment import Framing
from jaxface.cli import load_config
from jaxface.errors import UserError
from jaxface.evaluate import evaluate_runs
from jaxface.input_pipeline import open_dataset
from jaxface.parallel import JitEngine, make_mesh
from jaxface.state import count
from jaxface.tasks import make_task
from jaxface.tasks.makeup import COLOURS, Faces, MakeupTask, colours_loss, region_loss
from jaxface.train import train
from jaxface.workdir import CHECKPOINT_FOLDER
from tests.smoke import (
  REPOSITORY,
  assert_same_but_for_rounding,
  assert_same_gradients,
  experiment,
  first_batches,
  first_state,
  run_steps,
  saved_state,
  shared_engine,
  start_from,
)

pytestmark = pytest.mark.usefixtures('one_device_engines')

SYSTEMS = ('ipmnet', 'beautygan')


def _config(system, makeup_dir):
  config = experiment(system, 'code', makeup_dir)
  config.batch_size = 2
  # Antialiased, one pixel of BeautyGAN's second step lies on a kink of its l1 to rounding, and its slope with it.
  config.data.resize = 'bilinear'
  config.total_steps = 4
  config.eval_steps = config.render_steps = 0
  config.checkpoint_steps, config.keep_last = 2, 400
  config.ema_decay = 0.9
  config.optimizer.learning_rate, config.optimizer.decay = 3e-3, 'constant'
  return config


@functools.cache
def _batches(makeup_dir, system):
  return first_batches(_config(system, makeup_dir), 2)


@pytest.mark.parametrize('system', SYSTEMS)
def test_two_devices_compute_what_one_does(makeup_dir, system):
  config, batches = _config(system, makeup_dir), _batches(makeup_dir, system)
  one = shared_engine(config, devices=1)
  two = JitEngine(make_task(config), seed=0, mesh=make_mesh(1, jax.devices()[:2]))
  start_from(two, lambda: first_state(one))
  assert_same_gradients((two, one), batches[0])
  expected, expected_log = run_steps(one, batches)
  state, log = run_steps(two, batches)
  for step, (found, wanted) in enumerate(zip(log, expected_log, strict=True)):
    assert found.keys() == wanted.keys()
    for name in wanted:
      np.testing.assert_allclose(found[name], wanted[name], rtol=2e-3, err_msg=f'{name} of step {step}')
  assert_same_but_for_rounding(state.params, expected.params)
  assert_same_but_for_rounding((state.ema, state.model_state), (expected.ema, expected.model_state))


@pytest.fixture(scope='module', params=SYSTEMS)
def whole_run(request, makeup_dir, tmp_path_factory):
  workdir = tmp_path_factory.mktemp(request.param) / 'run'
  config = _config(request.param, makeup_dir)
  train(config, workdir, quiet=True)
  return request.param, config, workdir


def test_resumed_equals_uninterrupted_to_the_bit(whole_run, tmp_path):
  _, config, workdir = whole_run
  shutil.copytree(workdir, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run' / CHECKPOINT_FOLDER / '4')
  assert train(config, tmp_path / 'run', quiet=True).step == 4
  found, expected = (saved_state(w, config, 4) for w in (tmp_path / 'run', workdir))
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  first = saved_state(workdir, config, 2)
  assert not np.array_equal(*(jax.tree.leaves(state.params)[0] for state in (first, found)))


def test_evaluation_averages_over_drawn_references(whole_run, tmp_path, capsys):
  _, _, workdir = whole_run
  own = evaluate_runs([workdir], out=tmp_path / 'own')[workdir.name]
  assert {'transfer/psnr', 'nothing/psnr', 'transfer, lips/l1', 'background/l1', 'reconstruction/ssim'} <= own.keys()
  assert all(np.isfinite(value) for value in own.values())
  drawn = evaluate_runs([workdir], out=tmp_path / 'drawn', draws=2)[workdir.name]
  # Of a reference that was drawn there is no true result.
  assert not any(name.startswith(('transfer', 'pasted', 'nothing')) for name in drawn)
  # What comes of level 0 does not depend on the reference.
  assert drawn['reconstruction/psnr'] == pytest.approx(own['reconstruction/psnr'], rel=1e-4)
  assert drawn['reconstruction (sd)/psnr'] == pytest.approx(0, abs=1e-3)
  assert drawn['background (sd)/l1'] > 0
  saved = json.loads((tmp_path / 'drawn' / 'results.json').read_text())
  assert saved['protocol']['references'].startswith('2 draws')
  assert 'background (sd)' in capsys.readouterr().out


def test_a_pair_is_learnt_by_heart(whole_run, makeup_dir):
  system, config, _ = whole_run
  engine = shared_engine(config, devices=1)  # The step of the run, which is compiled already.
  pair = {name: np.repeat(values[:1], 2, axis=0) for name, values in _batches(makeup_dir, system)[0].items()}
  batches = engine.put_stacked([{**pair, 'row': np.arange(2, dtype=np.int32)}])
  state, log = engine.init(), []
  for _ in range(15):
    state, metrics = engine.train_step(state, batches, None)
    log.append(engine.metrics_on_host(metrics))
  terms = {'ipmnet': ('reconstruction', 'foreground', 'cycle'), 'beautygan': ('lips', 'skin', 'identity')}
  for term in terms[system]:
    first, last = log[0][term][0], np.mean([one[term][0] for one in log[-5:]])
    assert last < 0.7 * first, (term, first, last)


def test_the_averaged_copy_follows_the_generator(whole_run, makeup_dir):
  """It is what evaluation takes: one that stands still is a network never trained."""
  system, config, _ = whole_run
  engine = shared_engine(config, devices=1)
  batches = engine.put_stacked(_batches(makeup_dir, system)[:1])
  state = engine.init()
  before = jax.device_get(state.ema)
  state, _ = engine.train_step(state, batches, None)
  after, params = jax.device_get((state.ema, state.params))
  assert before.keys() == after.keys() == {'generator'}
  wanted = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, before['generator'], params['generator'])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), after['generator'], wanted)
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), after['generator'], before['generator'])
  assert max(jax.tree.leaves(moved)) > 1e-4


@pytest.mark.parametrize('system', SYSTEMS)
def test_true_results_are_learnt_from_where_they_are_known(makeup_dir, system):
  config = _config(system, makeup_dir)
  config.loss.paired = 2.0
  task = make_task(config)
  dataset = open_dataset(config.data.name, 'train', task.batch_fields, image_size=32, data_dir=makeup_dir)
  batch = next(input_pipeline.eval_batches(dataset, batch_size=2))
  state, key = jax.eval_shape(task.init, jax.random.key(0)), jax.random.key(0)
  assert 'paired' in jax.eval_shape(task.train_step, state, batch, key)[1]
  # By the true results alone nothing else is computed.
  alone = make_task(experiment(system, 'code,paired', makeup_dir))
  computed = jax.eval_shape(alone.train_step, jax.eval_shape(alone.init, key), batch, key)[1]
  own = {'ipmnet': {'change', 'colours'}, 'beautygan': set()}[system]
  assert set(computed) == {'loss', 'grad_norm', 'paired', *own}
  # Evaluation with drawn references, of which there is no true result, must do without.
  assert 'makeup_image' not in make_task(config, training=False).batch_fields
  assert 'paired' not in jax.eval_shape(make_task(_config(system, makeup_dir)).train_step, state, batch, key)[1]


class _Painter(MakeupTask):
  """Draws everything darker than it is, and paints blue by the level."""

  def code(self, state, reference):
    return np.ones(len(reference.image), np.float32)

  def wear(self, state, target, code, level=None):
    blue = np.float32([[[[0, 0, 0.4]]]])
    return 0.8 * target.image - 0.2 + (code if level is None else level)[:, None, None, None] * blue


def test_what_is_pasted_is_what_the_makeup_changes():
  task = _Painter(framing=Framing(32, random_crop=False, flip=False), image_size=32)
  label = np.full((1, 32, 32), labels.index('skin'), np.uint8)
  label[:, :16] = labels.index('background')
  target = np.float32(np.random.default_rng(0).uniform(0.1, 0.7, (1, 32, 32, 3)))
  truth = target + np.float32([0, 0, 0.2]) * (label[..., None] > 0)
  batch = {'image': target, 'label': label, 'reference_image': target, 'reference_label': label, 'makeup_image': truth}
  measured = task.summary({k: np.asarray(v).mean() for k, v in task.eval_step(None, batch, None).items()})
  np.testing.assert_allclose(measured['pasted/l1'], 0, atol=1e-6)
  np.testing.assert_allclose(measured['nothing, skin/l1'], 0.2 / 3, rtol=1e-5)
  assert measured['transfer/l1'] > 0.05
  shown = task.render(None, batch, None)
  np.testing.assert_allclose(shown['pasted'], truth, atol=1e-6)
  np.testing.assert_array_equal(shown['pasted'][:, :16], shown['target'][:, :16])  # The background to the bit.


def test_every_region_counts_alike_in_the_distance_to_the_true_picture():
  lips, skin = labels.index('u_lip'), labels.index('skin')
  label = np.full((1, 32, 32), skin, np.uint8)
  label[:, 20:22, 10:20] = lips
  truth = np.zeros((1, 32, 32, 3), np.float32)
  off = {name: np.where(label[..., None] == name, np.float32(0.5), truth) for name in (lips, skin)}
  share = (label == lips).mean()
  assert region_loss(truth, truth, label) == 0
  np.testing.assert_allclose(region_loss(truth, off[lips], label), 0.5 * (1 + share), rtol=1e-5)
  np.testing.assert_allclose(region_loss(truth, off[skin], label), 0.5 * (1 + 1 - share), rtol=1e-5)


def test_styles_say_the_colours_of_the_regions_a_face_has():
  label = np.full((2, 32, 32), labels.index('skin'), np.uint8)
  label[0, 20:22, 10:20] = labels.index('l_lip')
  label[0, 8:10, 8:10] = labels.index('l_eye')
  lips = label[..., None] == labels.index('l_lip')
  faces = Faces(np.where(lips, np.float32([0.5, -0.5, 0.1]), np.float32([0.2, 0.1, -0.3])), label)
  styles = np.zeros((2, COLOURS + 1), np.float32)
  styles[0, :3] = 0.6, -1.2, 0.8  # Twice lips less skin; around the eyes there is skin.
  styles[:, 6:9], styles[:, 9] = (0.2, 0.1, -0.3), 7
  assert colours_loss(styles, faces) == pytest.approx(0, abs=1e-6)
  painted = faces.image.copy()
  painted[0, 6:8, 6:12] += np.float32([0, 0, 0.2])  # Within the eye's surroundings, not all of them.
  assert colours_loss(styles, faces._replace(image=painted)) > 1e-3
  styles[1, :6] = 9  # Whose face has neither lips nor eyes.
  assert colours_loss(styles, faces) == pytest.approx(0, abs=1e-6)
  styles[:, 0] += 0.6  # Of two, one has lips, and a ninth of the numbers is wrong.
  np.testing.assert_allclose(colours_loss(styles, faces), 0.6 / 2 / 9, rtol=1e-5)


@pytest.mark.parametrize('system', SYSTEMS)
def test_bfloat16_and_pieces_keep_parameters_in_float32(makeup_dir, system):
  config = _config(system, makeup_dir)
  config.model.dtype, config.accumulate_steps = 'bfloat16', 2
  engine = JitEngine(make_task(config), seed=0, mesh=make_mesh(1, jax.devices()[:1]))
  batch = engine.put(_batches(makeup_dir, system)[0])
  state, metrics = jax.eval_shape(engine.task.train_step, engine.abstract_state, batch, jax.random.key(0))
  jax.tree.map(
    lambda new, old: chex.assert_equal((new.shape, new.dtype), (old.shape, old.dtype)), state, engine.abstract_state
  )
  assert {metric.shape for metric in metrics.values()} == {()}


@pytest.mark.parametrize(
  ('system', 'arg'),
  [
    ('ipmnet', 'code'),
    ('ipmnet', 'paper'),
    ('ipmnet', 'code,demo'),
    ('ipmnet', 'code,paired'),
    ('beautygan', 'psgan'),
    ('beautygan', 'code,paired'),
    ('beautygan', 'code,demo'),
  ],
)
def test_every_config_builds(system, arg):
  config = load_config(f'{REPOSITORY}/experiments/{system}.py:{arg}', [])
  with pytest.raises(UserError, match=r'jaxface convert (resnet50_face|vgg19)') if ',' not in arg else no_error():
    make_task(config)
  config.loss.perceptual = 'none'
  task = make_task(config)
  state = jax.eval_shape(task.init, jax.random.key(0))
  if arg in ('code', 'psgan'):
    # As published; see the networks' own tests.
    assert count(state.params['generator']) == {'ipmnet': 15_088_191, 'beautygan': 9_237_376}[system]
