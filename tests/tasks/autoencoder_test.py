"""Training of the first stage: its losses are the public code's, it learns, and its figures are what they say."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax import lax

from jaxface.augment import Augment
from jaxface.convert import vqgan as convert
from jaxface.errors import UserError
from jaxface.models.vqgan import Quantised
from jaxface.state import TrainState, for_evaluation
from jaxface.tasks.autoencoder import (
  AutoencoderLoss,
  AutoencoderTask,
  LpipsLoss,
  Painted,
  adaptive_weight,
  hinge_loss,
  make_autoencoder,
  make_vqgan,
)
from tests.golden import load, nhwc
from tests.smoke import experiment


def _paint(kernel, features):
  return lax.conv_general_dilated(features, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def _quantised(value):
  return Quantised(None, None, codebook=value, commitment=jnp.zeros(()))


@pytest.fixture(scope='module')
def golden():
  """The golden's pictures and last layer, its discriminator in evaluation mode, and the loss of all."""
  about, state, arrays = load('vqgan/vq_losses')
  module, variables = convert.discriminator.from_reference(state)
  judge = functools.partial(module.apply, variables)
  features, image = nhwc(arrays['features']), nhwc(arrays['x'])
  kernel = jnp.asarray(arrays['last_layer'].transpose(2, 3, 1, 0))
  loss = AutoencoderLoss(adversarial=about['config']['disc_weight'], adversarial_start=about['config']['disc_start'])

  def objective(features, kernel, codebook_loss, step):
    painted = Painted(_paint, kernel, features)
    value, made, terms = loss(painted, image, _quantised(codebook_loss), judge, loss.switch(step))
    return value, (made, terms)

  run = jax.jit(jax.value_and_grad(objective, (0, 1, 2), has_aux=True))
  return about, arrays, judge, image, (features, kernel, jnp.asarray(arrays['codebook_loss'])), run


def test_losses_match_the_golden(golden):
  about, arrays, judge, image, inputs, run = golden
  (loss, (made, terms)), _ = run(*inputs, about['config']['global_step'])
  weight = float(about['config']['disc_weight'] * terms['adaptive'])
  ours = {
    'reconstruction': made.transpose(0, 3, 1, 2),
    'generator_loss': loss,
    'nll_loss': terms['l1'],
    'd_weight': weight,
    'g_loss': terms['adversarial'] / weight,
    'discriminator_loss': hinge_loss(judge(image), judge(made)),
  }
  tolerance = about['tolerance']
  for name, value in ours.items():
    np.testing.assert_allclose(
      value, arrays[name], rtol=tolerance['relative'], atol=tolerance['absolute'], err_msg=name
    )


def test_gradients_are_those_of_the_sum_with_the_adaptive_weight_constant(golden):
  _, _, judge, image, inputs, run = golden
  (_, (_, terms)), found = run(*inputs, 10)
  weight = 0.75 * terms['adaptive']

  @jax.jit
  @functools.partial(jax.grad, argnums=(0, 1, 2))
  def plainly(features, kernel, codebook_loss):
    made = _paint(kernel, features)
    return jnp.abs(made - image).mean() - weight * judge(made).mean() + codebook_loss

  for ours, expected in zip(found, plainly(*inputs), strict=True):
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-6 * np.abs(expected).max())
  assert weight > 0.01


def test_before_its_start_the_discriminator_has_no_say(golden):
  _, _, _, image, inputs, run = golden
  late = AutoencoderLoss(adversarial_start=11)
  assert [float(late.switch(step)) for step in jnp.array([0, 10, 11, 12])] == [0, 0, 1, 1]
  off = AutoencoderLoss()
  features, kernel, codebook_loss = inputs
  loss, _, terms = off(Painted(_paint, kernel, features), image, _quantised(codebook_loss), None, jnp.ones(()))
  np.testing.assert_allclose(loss, terms['l1'] + codebook_loss, rtol=1e-6)
  (before, _), _ = run(*inputs, -1)
  np.testing.assert_allclose(before, loss, rtol=1e-5)


class _StandIn(nn.Module):
  """Takes pictures as LPIPS does, and gives a distance for each."""

  def __call__(self, made, true):
    return jnp.square(made - true).mean((1, 2, 3)) + made.min((1, 2, 3))


def test_perceptual_term_is_the_mean_over_pictures_in_unit_range():
  made, true = jax.random.uniform(jax.random.key(0), (2, 2, 4, 4, 3), minval=-1)
  loss = LpipsLoss(_StandIn())
  expected = jnp.square(made - true).mean() / 4 + (made.min((1, 2, 3)).mean() + 1) / 2
  np.testing.assert_allclose(loss({}, made, true), expected, rtol=1e-5)
  np.testing.assert_array_equal(jax.grad(loss, argnums=2)({}, made, true), jnp.zeros_like(true))
  task = AutoencoderLoss(perceptual=loss, perceptual_weight=3.0, adversarial=0.0)
  _, _, terms = task(Painted(lambda kernel, features: features, None, made), true, _quantised(0.0), None, 1.0, {})
  np.testing.assert_allclose(terms['perceptual'], 3 * expected, rtol=1e-5)


@pytest.fixture(scope='module')
def trained():
  """A small task with discriminator and average, a batch of smooth pictures, and 40 steps on it."""
  config = experiment('vqgan', 'published')
  config.ema_decay = 0.9
  config.optimizer.learning_rate = 2e-3
  config.loss.adversarial_start = 35
  task = make_autoencoder(config)
  waves = np.random.default_rng(0).uniform(0.1, 0.5, (4, 3, 2))
  grid = np.arange(16)
  phase = waves[..., 0, None, None] * grid[:, None] + waves[..., 1, None, None] * grid
  image = np.uint8(127 + 100 * np.sin(phase)).transpose(0, 2, 3, 1)
  batch = {'image': image, 'row': np.arange(4, dtype=np.int32)}
  step = jax.jit(task.train_step)
  states = [jax.jit(task.init)(jax.random.key(0))]
  losses = []
  for _ in range(40):
    state, metrics = step(states[-1], batch, jax.random.key(1))
    states.append(state)
    losses.append(metrics)
  return config, task, batch, states, losses


@pytest.fixture(scope='module')
def seen(trained):
  """What evaluation says and shows of the first state, the last, and the last without its average."""
  _, task, batch, states, _ = trained

  @jax.jit
  def look(state):
    key = jax.random.key(0)
    return task.eval_step(state, batch, key), task.render(state, batch, key), task.compared(state, batch)._asdict()

  last = states[-1]
  now = last.replace(ema={name: last.params[name] for name in last.ema})
  return [look(for_evaluation(state)) for state in (states[0], last, now)]


def _summary(task, measured):
  return task.summary(jax.tree.map(lambda rows: np.asarray(rows, np.float64).mean(0), measured))


def test_it_learns_a_batch(trained, seen):
  _, task, _, _, losses = trained
  terms = {'loss', 'l1', 'vq', 'adaptive', 'adversarial', 'discriminator', 'grad_norm'}
  assert losses[0].keys() == terms
  assert losses[-1]['l1'] < 0.6 * losses[0]['l1']
  before, after = _summary(task, seen[0][0]), _summary(task, seen[2][0])
  assert after['reconstruction/l1'] < 0.6 * before['reconstruction/l1']
  assert after['reconstruction/psnr'] > before['reconstruction/psnr'] + 4
  assert after['reconstruction/ssim'] > before['reconstruction/ssim']


def test_the_discriminator_learns_from_its_start(trained):
  _, _, _, states, losses = trained
  judges = [states[i].params['discriminator'] for i in (0, 35, 40)]
  moved = [optax.tree.norm(jax.tree.map(np.subtract, a, b)) for a, b in itertools.pairwise(judges)]
  assert moved[0] == 0
  assert moved[1] > 0.01
  assert [float(metrics['adversarial']) != 0 for metrics in losses] == [False] * 35 + [True] * 5


def test_evaluation_uses_the_average_of_the_autoencoder(trained, seen):
  state = trained[3][-1]
  assert state.ema.keys() == {'generator'}
  averaged, now = (columns['reconstruction'] for _, columns, _ in seen[1:])
  assert 0 < np.abs(averaged - now).mean() < 0.2


def test_devices_agree_on_the_adaptive_weight_and_the_statistics(trained):
  config, _, batch, states, losses = trained
  state = states[36]
  by_axis = make_autoencoder(config, 'devices')
  devices = jax.devices()[:2]
  rows = jax.tree.map(lambda t: t.reshape(2, -1, *t.shape[1:]), batch)
  step = jax.pmap(by_axis.train_step, 'devices', in_axes=(None, 0, None), devices=devices)
  after, metrics = step(state, rows, jax.random.key(1))
  for name in ('adaptive', 'grad_norm'):
    np.testing.assert_allclose(metrics[name], np.full(2, losses[36][name]), rtol=2e-3, err_msg=name)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, atol=1e-5), after.model_state, states[37].model_state)


def test_use_of_the_codebook_is_exact():
  config = experiment('vqgan', 'published')
  task = make_autoencoder(config)
  codes = np.zeros(32)
  codes[[3, 5, 7, 9]] = 0.25
  summary = task.summary({'reconstruction/l1': np.float64(0.5), 'codes': codes})
  assert summary == {'reconstruction/l1': 0.5, 'codebook/perplexity': pytest.approx(4), 'codebook/used': 4 / 32}


def test_what_is_drawn_and_compared(trained, seen):
  task = trained[1]
  measured, columns, compared = seen[1]
  assert columns.keys() == set(task.columns)
  for picture in columns.values():
    assert picture.shape == (4, 16, 16, 3)
    assert picture.min() >= 0
    assert picture.max() <= 1
  np.testing.assert_array_equal(columns['codes'][:, ::2, ::2], columns['codes'][:, 1::2, 1::2])
  np.testing.assert_array_equal(compared['pairs']['reconstruction'][1], columns['reconstruction'])
  np.testing.assert_array_equal(compared['real'], columns['input'])
  np.testing.assert_allclose(measured['codes'].sum(1), 1, rtol=1e-6)
  colours = len(np.unique(np.round(columns['codes'], 4).reshape(-1, 3), axis=0))
  assert _summary(task, measured)['codebook/used'] * 32 == colours > 4


def test_evaluation_shows_the_network_pictures_in_the_signed_range(trained, seen):
  _, task, batch, states, _ = trained
  image = batch['image'] / np.float32(255)
  made, _ = jax.jit(task.model.apply)({'params': states[-1].ema['generator']}, 2 * image - 1)
  made = np.clip((made + 1) / 2, 0, 1)
  measured, columns, _ = seen[1]
  np.testing.assert_allclose(columns['reconstruction'], made, atol=1e-4)
  np.testing.assert_allclose(measured['reconstruction/l1'], np.abs(image - made).mean((1, 2, 3)), rtol=1e-3)


def test_a_runs_configuration_rebuilds_its_network(trained):
  config, task, _, _, _ = trained
  assert make_vqgan(config.model) == task.model


def test_without_training_nothing_is_loaded_and_the_state_is_the_same():
  config = experiment('vqgan', 'legacy')
  config.loss.perceptual = 'lpips-vgg'
  task = make_autoencoder(config, training=False)
  assert task.frozen is None
  assert task.loss.placement == 'legacy'
  config.loss.perceptual = 'random'
  other = make_autoencoder(config)
  assert other.frozen is not None
  assert jax.eval_shape(task.init, jax.random.key(0)) == jax.eval_shape(other.init, jax.random.key(0))


def test_wrong_configurations_say_what_there_is():
  for key, value, told in (
    ('model.image_size', 17, 'model.image_size=17 must be a multiple of 2, .*the nearest is 16'),
    ('model.width', 40, 'width=40; it must be a multiple of 32'),
    ('model.discriminator_layers', 3, 'image_size=16 is too small for model.discriminator_layers=3.*needs 24'),
    ('loss.perceptual', 'vgg', 'unknown loss.perceptual .*choose from lpips-vgg, random, none'),
    ('loss.placement', 'paper', "unknown loss.placement 'paper'; choose from true, legacy"),
    ('loss.beta', -1.0, 'loss.beta=-1.0; it must be at least 0'),
  ):
    config = experiment('vqgan', 'published')
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=told):
      make_autoencoder(config)


def test_the_adaptive_weight_is_a_ratio_up_to_ten_thousand():
  a, b = ({'kernel': jnp.array([3.0, 4.0])}, {'kernel': jnp.array([0.0, 0.5])})
  np.testing.assert_allclose(adaptive_weight(a, b), 5 / 0.5001, rtol=1e-5)
  np.testing.assert_allclose(adaptive_weight(a, jax.tree.map(jnp.zeros_like, b)), 1e4, rtol=1e-6)


def test_factors_of_the_configuration_weigh_their_terms():
  config = experiment('vqgan', 'published')
  config.loss.codebook_weight, config.loss.beta, config.loss.perceptual_weight = 3.0, 0.5, 7.0
  loss = make_autoencoder(config).loss
  assert loss.perceptual_weight == 7
  picture = jnp.zeros((1, 4, 4, 3))
  quantised = Quantised(None, None, codebook=jnp.float32(2), commitment=jnp.float32(10))
  loss = dataclasses.replace(loss, perceptual=None)
  _, _, terms = loss(Painted(lambda kernel, features: features, None, picture), picture, quantised, None, 1.0)
  np.testing.assert_allclose(terms['vq'], 3 * (2 + 0.5 * 10), rtol=1e-6)


def test_the_statistics_see_the_real_pictures_first(monkeypatch):
  task = make_autoencoder(experiment('vqgan', 'published'))
  monkeypatch.setattr(AutoencoderTask, 'judge', lambda self, params, seen, picture: (picture, [*seen, picture]))
  real, made = jnp.full(2, 0.25), jnp.full(2, -0.5)
  loss, seen = task.discriminator_loss(None, [], real, made)
  np.testing.assert_allclose(loss, 0.5 * (0.75 + 0.5))
  np.testing.assert_array_equal(seen, [real, made])


def test_every_step_varies_its_pictures_anew(monkeypatch):
  drawn = []
  own = lambda loss_fn, params, stats, batch, **_: loss_fn(params, stats, batch)
  monkeypatch.setattr('jaxface.tasks.autoencoder.gradients', own)

  def augment(batch, keys):
    drawn.append(jax.random.key_data(keys))
    raise StopIteration

  task = dataclasses.replace(make_autoencoder(experiment('vqgan', 'published')), augment=augment)
  batch = {'image': np.zeros((2, 16, 16, 3), np.uint8), 'row': np.arange(2)}
  for seed in (0, 1):
    with pytest.raises(StopIteration):
      task.train_step(TrainState(jnp.int32(0), None, None, None), batch, jax.random.key(seed))
  assert len(np.unique(np.concatenate(drawn), axis=0)) == 4


def test_what_the_configuration_says_reaches_the_task():
  config = experiment('vqgan', 'published')
  config.update_from_flattened_dict(
    {
      'loss.adversarial': 0.25, 'loss.adversarial_start': 7, 'augment.flip': True, 'accumulate_steps': 2,
      'ema_decay': 0.5, 'model.codebook_spread': 0.125, 'model.dtype': 'bfloat16', 'model.remat': True,
    }
  )  # fmt: skip
  task = make_autoencoder(config, 'devices')
  assert (task.loss.adversarial, task.loss.adversarial_start, task.loss.axis_name) == (0.25, 7, 'devices')
  assert task.augment == Augment(flip=True)
  assert (task.accumulate_steps, task.ema_decay, task.axis_name) == (2, 0.5, 'devices')
  assert (task.model.codebook_spread, task.model.dtype, task.model.remat) == (0.125, jnp.bfloat16, True)


def test_the_averaged_copy_follows_the_autoencoder(trained):
  before, after = trained[3][38:40]
  old, new = before.ema['generator'], after.params['generator']
  mixed = jax.tree.map(lambda a, b: 0.9 * np.asarray(a) + 0.1 * np.asarray(b), old, new)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-7), after.ema['generator'], mixed)
