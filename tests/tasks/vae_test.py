"""The face-mask VAE's task against the public Keras code, and properties of its losses, metrics and variants."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxface import losses
from jaxface.augment import Augment
from jaxface.cli import load_config
from jaxface.convert import from_reference, to_reference
from jaxface.errors import UserError
from jaxface.metrics import segmentation
from jaxface.models.vae import FaceMaskVAE, Prediction
from jaxface.optimizers import clip_each_by_norm, scale_by_keras_adam
from jaxface.state import count, first_state, for_evaluation
from jaxface.tasks import make_task
from jaxface.tasks.task import row_keys
from jaxface.tasks.vae import RECONSTRUCTION_LOSSES, VaeLoss, VaeTask
from tests.golden import load
from tests.smoke import EXPERIMENT, TINY, smoke_config, tiny_vae

VARIANTS = [f'{mask}_{loss}' for mask in ('mask', 'nomask') for loss in RECONSTRUCTION_LOSSES]


class _GivenNoise(VaeTask):
  """Takes its noise from the batch, as the golden does."""

  def draw_noise(self, key, batch):
    return batch['noise']


def _golden_task(module: FaceMaskVAE) -> _GivenNoise:
  recipe = optax.chain(clip_each_by_norm(1e-3), scale_by_keras_adam(), optax.scale(-1e-4))
  return _GivenNoise(model=module, loss=VaeLoss('ssim_l2', masks=True), optimizer=recipe)


@pytest.fixture(scope='module')
def golden():
  about, tensors, arrays = load('vae/train_step')
  module, variables = from_reference('vae', tensors)
  task = _golden_task(module)
  params, batch_stats = variables['params'], variables['batch_stats']
  state = first_state(params, batch_stats, jax.jit(task.optimizer.init)(params))
  step = jax.jit(task.train_step)
  states, metrics = [state], []
  for i in range(2):
    batch = {'image': arrays['image'], 'mask': arrays['mask'], 'row': np.arange(2), 'noise': arrays['epsilon'][i]}
    state, terms = step(states[-1], batch, jax.random.key(0))
    states.append(state)
    metrics.append(terms)
  return about, arrays, task, states, metrics


def test_train_step_reports_the_losses_of_the_public_code(golden):
  _, arrays, _, _, metrics = golden
  for i, terms in enumerate(metrics):
    public = {name: arrays[f'before_step{i + 1}/{name}'] for name in ('loss', 'kl', 'ssim', 'mse', 'bce')}
    ours = {**terms, 'mse': terms['l2'], 'bce': terms['bce'] + terms['dice']}
    for name, value in public.items():
      np.testing.assert_allclose(ours[name], value, rtol=5e-4, err_msg=f'{name} before step {i + 1}')


def test_train_step_moves_the_tensors_as_the_public_code_does(golden):
  about, arrays, _, states, _ = golden
  for i, state in enumerate(states[1:], start=1):
    ours = to_reference('vae', {'params': state.params, 'batch_stats': state.model_state})
    before = to_reference('vae', {'params': states[0].params, 'batch_stats': states[0].model_state})
    checked = [name.removeprefix(f'step{i}/') for name in arrays if name.startswith(f'step{i}/')]
    assert len(checked) == 9
    for name in checked:
      error = np.abs(ours[name] - arrays[f'step{i}/{name}'])
      if 'moving' in name:
        assert error.max() < about['tolerance']['moving_statistics_max_abs'], name
      else:
        assert error.max() < about['tolerance']['trained_tensors_max_abs'], name
        assert error.mean() < about['tolerance']['trained_tensors_mean_abs'], name
        assert np.abs(ours[name] - before[name]).max() > 1e-5, f'{name} did not move'


def test_evaluation_after_the_steps_matches_the_public_code(golden):
  _, arrays, task, states, _ = golden
  state = states[-1]

  @jax.jit
  def terms(state, image, mask, noise):
    predicted = task.model.apply(
      {'params': state.params, 'batch_stats': state.model_state}, image, mask=mask, noise=noise
    )
    return task.loss(predicted, image, mask)[1]

  # The reference draws noise in evaluation, too, and uses log sigma itself as the standard deviation.
  ours = terms(state, arrays['image'], arrays['mask'], arrays['epsilon'][0])
  np.testing.assert_allclose(ours['loss'], arrays['eval_after/loss'], rtol=5e-4)
  np.testing.assert_allclose(ours['kl'], arrays['eval_after/kl'], rtol=5e-4)


def _smoke(variant: str):
  config = smoke_config(variant)
  config.optimizer.name = 'adam'
  config.optimizer.clip_each = 0.0
  config.optimizer.learning_rate = 0.01
  return config


def _tiny(variant: str):
  return tiny_vae(_smoke(variant))


@functools.cache
def _fresh(masks: bool):
  """The state that every tiny variant with or without masks starts from."""
  return jax.jit(_tiny('mask_l1' if masks else 'nomask_l1').init)(jax.random.key(0))


@pytest.fixture(scope='module')
def one_batch(data_dir):
  """As small as the tiny network's."""
  from jaxface.input_pipeline import load_whole, open_dataset

  whole = load_whole(
    open_dataset('synthetic_faces/faces_16', 'train', ('image', 'mask'), image_size=TINY, data_dir=data_dir)
  )
  return {name: values[:4] for name, values in whole.items()} | {'row': np.arange(4, dtype=np.int32)}


@pytest.mark.parametrize('variant', VARIANTS)
def test_every_variant_overfits_one_batch(variant, one_batch):
  task = _tiny(variant)
  batch = {name: one_batch[name] for name in (*task.batch_fields, 'row')}
  state = _fresh(task.loss.masks)
  batches = jax.tree.map(lambda rows: jnp.repeat(jnp.asarray(rows)[None], 40, axis=0), batch)

  @jax.jit
  def train(state, batches):
    def step(state, batch):
      return task.train_step(state, batch, jax.random.fold_in(jax.random.key(1), state.step))

    return jax.lax.scan(step, state, batches)

  _, metrics = train(state, batches)
  # SSIM's loss, and so any sum with it, is at least 1.
  least = 1.0 if 'ssim' in RECONSTRUCTION_LOSSES[variant.partition('_')[2]] else 0.0
  first, last = metrics['loss'][0] - least, metrics['loss'][-5:].mean() - least
  assert last < 0.6 * first
  assert set(metrics) >= {'loss', 'kl', 'grad_norm'}
  assert ('dice' in metrics) == variant.startswith('mask')


@functools.cache
def _shapes(model):
  """Of a network's variables; several variants share one."""
  size = model.image_size
  return jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, size, size, 3), np.float32))


@pytest.mark.parametrize('arg', [*VARIANTS, *(f'{v},demo' for v in VARIANTS), *(f'{v},smoke' for v in VARIANTS)])
def test_every_config_builds(arg):
  config = load_config(f'{EXPERIMENT}:{arg}', [])
  shapes = _shapes(make_task(config).model)
  if ',' not in arg:
    # The published counts, moving statistics included.
    assert count(shapes) == (9_337_188 if arg.startswith('mask') else 9_067_395)


def test_metrics_follow_their_protocols(one_batch):
  task = _tiny('mask_ssim_l2')
  state = for_evaluation(_fresh(True))
  metrics = jax.jit(task.eval_step)(state, one_batch, jax.random.key(0))
  assert {name.rpartition('/')[0] for name in metrics} == {'', 'whole', 'true_mask', 'predicted_mask', 'mask'}
  assert all(values.shape == (4,) for values in metrics.values())
  image, mask = one_batch['image'] / np.float32(255), one_batch['mask'] / np.float32(255)
  decoded = np.asarray(jax.jit(task.predict)(state, image).decoded)
  composite = decoded * mask + image * (1 - mask)
  np.testing.assert_allclose(metrics['whole/l1'], np.abs(decoded - image).mean((1, 2, 3)), rtol=1e-4)
  np.testing.assert_allclose(metrics['true_mask/l1'], np.abs(composite - image).mean((1, 2, 3)), rtol=1e-4)
  assert (metrics['true_mask/l1'] < metrics['whole/l1']).all()


@pytest.mark.parametrize('name', RECONSTRUCTION_LOSSES)
def test_terms_have_the_published_weights(name):
  keys = jax.random.split(jax.random.key(2), 6)
  image, made = (jax.random.uniform(key, (2, 12, 12, 3)) for key in keys[:2])
  mask = (jax.random.uniform(keys[2], (2, 12, 12, 1)) > 0.5).astype(jnp.float32)
  logits, mean, log_sigma = (jax.random.normal(key, shape) for key, shape in
                             zip(keys[3:], ((2, 12, 12, 1), (2, 4), (2, 4)), strict=True))  # fmt: skip
  predicted = Prediction(made, 1 - made, jax.nn.sigmoid(logits), logits, mean, log_sigma)
  parts = {
    'l1': 4 * jnp.abs(image - made).mean(),
    'l2': 100 * jnp.square(image - made).mean(),
    'ssim': losses.ssim_loss(image, made),
  }
  expected = {part: parts[part] for part in name.split('_')}
  expected['kl'] = 1e-3 * losses.kl_divergence(mean, log_sigma)
  expected['bce'] = losses.binary_cross_entropy_from_logits(logits, mask)
  expected['dice'] = losses.dice_loss(jax.nn.sigmoid(logits), mask)
  for masks in (True, False):
    wanted = expected if masks else {part: v for part, v in expected.items() if part not in ('bce', 'dice')}
    loss, terms = VaeLoss(name, masks=masks)(predicted, image, mask)
    assert terms.keys() == {'loss', *wanted}
    for part, value in wanted.items():
      np.testing.assert_allclose(terms[part], value, rtol=1e-5, err_msg=part)
    np.testing.assert_allclose(loss, sum(wanted.values()), rtol=1e-5)


def test_evaluations_loss_and_masks_are_those_of_each_picture(one_batch):
  task, state = _tiny('mask_l1'), for_evaluation(_fresh(True))
  metrics = jax.jit(task.eval_step)(state, one_batch, jax.random.key(0))
  image, mask = one_batch['image'] / np.float32(255), one_batch['mask'] / np.float32(255)
  predicted = jax.jit(task.predict)(state, image)
  np.testing.assert_allclose(metrics['mask/iou'], segmentation.mask_iou(predicted.mask, mask), rtol=1e-5)
  np.testing.assert_allclose(metrics['mask/dice'], segmentation.mask_dice(predicted.mask, mask), rtol=1e-5)
  by_predicted = predicted.decoded * predicted.mask + image * (1 - predicted.mask)
  np.testing.assert_allclose(
    metrics['predicted_mask/l1'], np.abs(by_predicted - image).mean((1, 2, 3)), rtol=1e-4, atol=1e-6
  )
  for i in range(4):
    one = jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], predicted)
    # Only the face counts, set on the true background by the true mask, as in training.
    one = one._replace(image=one.decoded * mask[i : i + 1] + image[i : i + 1] * (1 - mask[i : i + 1]))
    loss, _ = task.loss(one, image[i : i + 1], mask[i : i + 1])
    np.testing.assert_allclose(metrics['loss'][i], loss, rtol=1e-4)


def test_the_background_has_no_gradient_with_masks():
  size = 16
  keys = jax.random.split(jax.random.key(1), 3)
  image, decoded = (jax.random.uniform(key, (2, size, size, 3)) for key in keys[:2])
  mask_logits = jax.random.normal(keys[2], (2, size, size, 1))
  mask = jnp.zeros((2, size, size, 1)).at[:, 4:10, 4:10].set(1.0)
  predicted = Prediction(None, decoded, jax.nn.sigmoid(mask_logits), mask_logits, jnp.zeros((2, 4)), jnp.zeros((2, 4)))
  loss = VaeLoss('ssim_l2', masks=True)

  def of_decoded(decoded):
    return loss(predicted._replace(image=decoded * mask + image * (1 - mask)), image, mask)[0]

  gradient = jax.jit(jax.grad(of_decoded))(predicted.decoded)
  assert np.abs(gradient * (1 - mask)).max() == 0
  assert np.abs(gradient * mask).max() > 0


def test_unlabelled_data_serves_variants_without_masks(one_batch):
  task = _tiny('nomask_l1')
  assert task.batch_fields == ('image',)
  batch = {name: one_batch[name] for name in ('image', 'row')}
  measured, shown = (
    jax.eval_shape(function, for_evaluation(_fresh(False)), batch, jax.random.key(0))
    for function in (task.eval_step, task.render)
  )
  assert {name.rpartition('/')[0] for name in measured} == {'', 'whole'}
  assert set(shown) == {'input', 'decoded', 'sample'}


def test_the_averaged_copy_follows_the_parameters(one_batch):
  config = _smoke('nomask_l2')
  config.ema_decay = 0.75
  task = tiny_vae(config)
  fresh = _fresh(False)
  state = fresh.replace(ema=fresh.params)
  after, _ = jax.jit(task.train_step)(state, one_batch, jax.random.key(1))
  mixed = jax.tree.map(lambda old, new: 0.75 * np.asarray(old) + 0.25 * np.asarray(new), state.params, after.params)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), after.ema, mixed)
  assert for_evaluation(after).params is after.ema


def test_unknown_loss_says_what_there_is():
  with pytest.raises(UserError, match='unknown loss.name .*choose from l1, l2, ssim, ssim_l1, ssim_l2'):
    VaeLoss('ssim_l3', masks=True)
  assert dataclasses.replace(VaeLoss('l1', masks=True), masks=False).masks is False


def test_what_the_configuration_says_reaches_the_task():
  config = smoke_config('mask_ssim')
  config.update_from_flattened_dict(
    {
      'loss.kl_weight': 0.5, 'loss.filter_size': 5, 'loss.fused_ssim': True, 'augment.flip': True,
      'augment.crop_pixels': 2, 'augment.brightness': 0.1, 'augment.contrast': 0.2, 'augment.saturation': 0.3,
      'accumulate_steps': 2, 'ema_decay': 0.5, 'model.sampling': 'reference', 'model.remat': True,
    }
  )  # fmt: skip
  task = make_task(config, 'devices')
  assert task.loss == VaeLoss('ssim', True, kl_weight=0.5, filter_size=5, fused_ssim=True, axis_name='devices')
  assert task.augment == Augment(flip=True, crop_pixels=2, brightness=0.1, contrast=0.2, saturation=0.3)
  assert (task.accumulate_steps, task.ema_decay) == (2, 0.5)
  assert (task.model.sampling, task.model.remat, task.model.axis_name) == ('reference', True, 'devices')


def test_the_widths_of_a_converted_network_are_its_own():
  config = smoke_config('mask_l1')
  with config.unlocked():
    config.model.decoder_widths = (5, 6, 7, 8)
  model = make_task(config).model
  assert model.decoder_widths == (5, 6, 7, 8)
  assert model.mask_widths == (2, 2, 2, 2)


def test_the_loss_has_the_window_and_the_weight_that_it_is_told():
  image, made = jax.random.uniform(jax.random.key(0), (2, 1, 12, 12, 3))
  latent = jnp.ones((1, 4)), jnp.zeros((1, 4))
  loss = VaeLoss('ssim', masks=False, kl_weight=3.0, filter_size=5)
  _, terms = loss(Prediction(made, made, None, None, *latent), image, None)
  np.testing.assert_allclose(terms['ssim'], losses.ssim_loss(image, made, filter_size=5), rtol=1e-6)
  np.testing.assert_allclose(terms['kl'], 3 * 0.5, rtol=1e-6)


def test_every_step_and_row_has_its_own_noise_and_its_own_variation(monkeypatch):
  drawn = []
  own = lambda state, batch, loss_fn, *_, **__: loss_fn(None, None, batch)
  monkeypatch.setattr('jaxface.tasks.vae.update', own)

  class Noted(VaeTask):
    def draw_noise(self, key, batch):
      drawn.append(jax.random.key_data(row_keys(key, batch)))
      raise StopIteration

  def augment(batch, keys):
    drawn.append(jax.random.key_data(keys))
    return batch

  plain = _tiny('nomask_l1')
  task = Noted(plain.model, plain.loss, plain.optimizer, augment=augment)
  batch = {'image': np.zeros((2, TINY, TINY, 3), np.uint8), 'row': np.arange(2)}
  for seed in (0, 1):
    with pytest.raises(StopIteration):
      task.train_step(None, batch, jax.random.key(seed))
  assert len(np.unique(np.concatenate(drawn), axis=0)) == 8
  noise = plain.draw_noise(jax.random.key(0), {'row': jnp.array([3, 4])})
  np.testing.assert_array_equal(noise[1], plain.draw_noise(jax.random.key(0), {'row': jnp.array([4])})[0])
  assert not np.isclose(noise[0], noise[1]).any()


def test_pictures_and_what_is_compared_are_what_they_are_called(one_batch):
  task, state, key = _tiny('mask_l1'), for_evaluation(_fresh(True)), jax.random.key(3)
  shown, compared = jax.jit(lambda: (task.render(state, one_batch, key), task.compared(state, one_batch)._asdict()))()
  assert set(shown) == set(task.columns)
  image, mask = one_batch['image'] / np.float32(255), one_batch['mask'] / np.float32(255)
  made = {
    'whole': shown['decoded'],
    'true_mask': shown['decoded'] * mask + image * (1 - mask),
    'predicted_mask': shown['decoded'] * shown['predicted mask'] + image * (1 - shown['predicted mask']),
  }
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
  close(shown['input'], image)
  close(shown['true mask'], mask)
  close(shown['by true mask'], made['true_mask'])
  close(shown['by predicted mask'], made['predicted_mask'])
  close(shown['sample'], task.decode(state, task.draw_noise(key, one_batch)))
  close(compared['real'], image)
  assert compared['pairs'].keys() == compared['sets'].keys() == made.keys()
  for name, picture in made.items():
    close(compared['pairs'][name][0], image)
    close(compared['pairs'][name][1], picture)
    close(compared['sets'][name], picture)
