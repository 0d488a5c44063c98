"""SCA-DM in the one train loop: any devices, resumed to the bit with its averaged copy, a batch learnt by heart."""

import dataclasses
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.augment import to_signed
from jaxface.diffusion.samplers import make_plan
from jaxface.parallel import JitEngine, make_mesh
from jaxface.state import for_evaluation
from jaxface.tasks import make_task
from jaxface.tasks.first_stage import FirstStage
from jaxface.tasks.scadm import OWN_STYLE
from jaxface.train import train
from jaxface.workdir import CHECKPOINT_FOLDER
from tests.smoke import (
  CUT_ALL,
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


def _config(data_dir):
  config = experiment('scadm', 'published', data_dir)
  config.total_steps = 4
  config.eval_steps = config.render_steps = 0
  config.checkpoint_steps, config.keep_last = 2, 400
  config.optimizer.learning_rate = 3e-3
  config.loss.discard_rate = config.loss.drop_rate = 0.0
  config.loss.prediction = 'v'  # Of noise, a first guess is far off the picture where there is little else.
  config.ema_decay = 0.9
  config.batch_size = 4
  return config


@functools.cache
def _batches(data_dir):
  return first_batches(_config(data_dir), 2)


def test_sharded_over_four_devices_is_what_one_computes(data_dir):
  config = _config(data_dir)
  one = shared_engine(config, devices=1)
  four = JitEngine(make_task(config), seed=0, mesh=make_mesh(2, jax.devices()[:4]), rules=CUT_ALL)
  start_from(four, lambda: first_state(one))
  assert_same_gradients((four, one), _batches(data_dir)[0])
  (expected, expected_log), (state, log) = (run_steps(engine, _batches(data_dir)) for engine in (one, four))
  for found, wanted in zip(log, expected_log, strict=True):
    assert found.keys() == wanted.keys() >= {'loss', 'denoising', 'grad_norm'}
    for name in wanted:
      np.testing.assert_allclose(found[name], wanted[name], rtol=1e-3, err_msg=name)
  assert any(leaf.sharding.spec for leaf in jax.tree.leaves(state.ema))
  assert state.frozen is None
  assert_same_but_for_rounding((state.params, state.ema), (expected.params, expected.ema))


@pytest.mark.usefixtures('one_device_engines')
def test_a_run_goes_on_to_the_bit(data_dir, tmp_path):
  config = _config(data_dir)
  train(config, tmp_path / 'whole', quiet=True)
  shutil.copytree(tmp_path / 'whole', tmp_path / 'cut')
  shutil.rmtree(tmp_path / 'cut' / CHECKPOINT_FOLDER / '4')
  assert train(config, tmp_path / 'cut', quiet=True).step == 4
  whole, cut = (saved_state(tmp_path / name, config, 4) for name in ('whole', 'cut'))
  jax.tree.map(np.testing.assert_array_equal, whole, cut)
  differences = jax.tree.map(lambda a, b: np.abs(a - b).max(), whole.params, whole.ema)
  assert set(differences) == {'unet', 'style'}
  for network, found in differences.items():
    assert max(jax.tree.leaves(found)) > 1e-4, f'{network}: more than rounding'


class _Open(FirstStage):
  """A first stage whose decoder shows the latents themselves; an untrained one destroys them."""

  def decode(self, params, latent):
    return latent / 4


def test_a_batch_is_learnt_by_heart_and_drawn_again(data_dir):
  engine = shared_engine(_config(data_dir), devices=1)  # The step of the run, which is compiled already.
  batch = _batches(data_dir)[0]
  state, losses = engine.init(), []
  stacked = engine.put_stacked([batch])
  for _ in range(110):
    state, metrics = engine.train_step(state, stacked, None)
    losses.append(metrics['loss'])
  losses = np.concatenate(jax.device_get(losses))
  assert losses[-20:].mean() < 0.35 * losses[:5].mean()

  task = engine.task
  sampling = dataclasses.replace(task.sampling, plan=make_plan('dpm_solver', task.schedule, 10))
  first_stage = _Open(task.first_stage.model, task.first_stage.scale)
  task = dataclasses.replace(task, sampling=sampling, first_stage=first_stage)

  @jax.jit
  def draw(state, image, label):
    image, label = to_signed(image), label.astype(jnp.int32)
    keys = jax.random.split(jax.random.key(3), len(image))
    drawn = task.draw(state, task.modes(state, image, label)[OWN_STYLE], keys)
    return drawn, task.coded(state, image)['first stage']

  drawn, coded = draw(for_evaluation(state), batch['image'], batch['label'])
  distances = np.square(np.asarray(drawn)[:, None] - np.asarray(coded)[None]).mean((2, 3, 4))
  own = np.diagonal(distances)
  others = (distances.sum(1) - own) / (len(own) - 1)
  assert own.mean() < 0.4 * others.mean()
  assert (distances.argmin(1) == np.arange(4)).sum() >= 3
