"""The face parser's task against the public PyTorch code, and properties of its loss, augmentation and figures."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from PIL import Image, ImageEnhance

from jaxface import labels
from jaxface.aot import hlo
from jaxface.cli import load_config
from jaxface.convert import from_reference, to_reference
from jaxface.errors import UserError
from jaxface.metrics import segmentation
from jaxface.models.bisenet import Logits
from jaxface.ohem import ohem_cross_entropy, pixel_cross_entropy
from jaxface.optimizers import learning_rate_schedule, make_optimizer, scale_rates
from jaxface.state import first_state, for_evaluation
from jaxface.tasks import make_task
from jaxface.tasks.parsing import ParsingAugment, ParsingLoss, enhanced
from tests.golden import load
from tests.smoke import REPOSITORY, untrained_state

EXPERIMENT = REPOSITORY / 'experiments' / 'bisenet.py'


def _config(arg: str):
  return load_config(f'{EXPERIMENT}:{arg}', [])


def _plain(config):
  """The configuration without augmentation, trained on whole pictures."""
  config.augment.update(crop_size=config.model.image_size, scales=(1.0,), flip=False)
  config.augment.update(brightness=0.0, contrast=0.0, saturation=0.0)
  return config


OHEM_CASES = ('many_hard', 'few_hard', 'ignored_in_top', 'ignored_many_hard')


@pytest.mark.parametrize('case', OHEM_CASES)
def test_ohem_is_the_public_one_in_value_and_gradient(case):
  about, _, arrays = load('bisenet/ohem')
  options = about['config'][case]
  loss = functools.partial(ohem_cross_entropy, threshold=options['thresh'], least=options['n_min'])
  logits = arrays['logits'].transpose(0, 2, 3, 1)
  value, gradient = jax.jit(jax.value_and_grad(loss))(logits, arrays[options['labels']])
  np.testing.assert_allclose(value, options['loss'], rtol=about['tolerance']['relative'])
  ours = gradient.transpose(0, 3, 1, 2)[:, :, ::3, ::3]
  np.testing.assert_allclose(ours, arrays[f'grad_{case}'], rtol=0, atol=about['tolerance']['gradients_max_abs'])


def test_ohem_of_equal_losses_counts_each_alike():
  logits = jnp.zeros((2, 4, 4, 3)).at[0, 0, 0].set(jnp.array([-3.0, 0, 0]))
  loss = functools.partial(ohem_cross_entropy, threshold=0.1, least=4)
  value, gradient = jax.jit(jax.value_and_grad(loss))(logits, jnp.zeros((2, 4, 4), jnp.int32))
  worst = np.log(2 + np.exp(-3)) + 3
  np.testing.assert_allclose(value, (worst + 3 * np.log(3)) / 4, rtol=1e-6)
  # One pixel for certain, and three of the other 31.
  np.testing.assert_allclose(gradient[1, 2, 2], np.array([-2, 1, 1]) / 3 * 3 / 31 / 4, rtol=1e-5)
  with pytest.raises(UserError, match='least=32 hard pixels of a batch of 32'):
    ohem_cross_entropy(logits, jnp.zeros((2, 4, 4), jnp.int32), threshold=0.1, least=32)


@pytest.mark.parametrize('threshold', [0.7, 0.01])
def test_ohem_sees_the_whole_batch_on_any_number_of_devices(threshold):
  """The hard pixels lie on one device; both branches of the choice."""
  rng = np.random.default_rng(0)
  logits = rng.standard_normal((4, 6, 5, 7)).astype(np.float32)
  logits[0] *= 5
  label = rng.integers(0, 7, (4, 6, 5))

  def step(logits, label, axis_name=None):
    return jax.value_and_grad(
      functools.partial(ohem_cross_entropy, threshold=threshold, least=20, axis_name=axis_name)
    )(logits, label)

  value, gradient = jax.jit(step)(logits, label)
  rows = NamedSharding(Mesh(jax.devices()[:4], 'data'), P('data'))
  spread = jax.device_put((logits, label), rows)
  compiled = jax.jit(step).lower(*spread).compile()
  sharded = compiled(*spread)
  np.testing.assert_allclose(sharded[0], value, rtol=1e-6)
  np.testing.assert_allclose(sharded[1], gradient, atol=1e-7)
  # Fifteen counts for a digit, three that weights need, and the loss: no device needs another one's pixels.
  exchanges = hlo.collectives(compiled.as_text())
  assert {each.kind for each in exchanges} == {'all-reduce'}
  assert sum(each.bytes for each in exchanges) == 4 * (15 + 3 + 1)
  replicas = jax.pmap(functools.partial(step, axis_name='replicas'), 'replicas')(logits[:, None], label[:, None])
  np.testing.assert_allclose(replicas[0], np.full(4, value), rtol=1e-6)
  # Devices average their gradients, so each must be as many times as large.
  np.testing.assert_allclose(replicas[1][:, 0] / 4, gradient, atol=1e-7)


def test_ohem_mixes_no_types():
  with jax.numpy_dtype_promotion('strict'):
    gradient = jax.grad(ohem_cross_entropy)(jnp.ones((2, 4, 4, 19)), jnp.zeros((2, 4, 4), int), threshold=0.7, least=3)
  assert np.isfinite(gradient).all()


def test_pixels_without_label_have_no_loss():
  logits = np.random.default_rng(0).standard_normal((1, 1, 3, 19)).astype(np.float32)
  loss = pixel_cross_entropy(logits, np.array([[[255, 18, -100]]]))
  expected = np.log(np.exp(logits[0, 0, 1]).sum()) - logits[0, 0, 1, 18]
  np.testing.assert_allclose(loss, [[[0, expected, 0]]], rtol=1e-6)


def test_learning_rates_are_the_published_ones():
  about, _, arrays = load('bisenet/lr_schedule')
  config = _config('celebamask_hq').optimizer
  schedule = learning_rate_schedule(
    config.learning_rate, total_steps=80_000, warmup_steps=1000, warmup_from=config.warmup_from, decay=config.decay
  )
  rates = jax.vmap(schedule)(arrays['iteration'].astype(np.int32))
  np.testing.assert_allclose(rates, arrays['learning_rate'], rtol=about['tolerance']['relative'])

  # A gradient of 0 leaves the weight decay alone, one of 1 the rates.
  task = make_task(_config('celebamask_hq'))
  shapes = jax.eval_shape(lambda: task.init(jax.random.key(0))).params
  zero, one = (jax.tree.map(lambda leaf, v=v: np.full((1,) * len(leaf.shape), v, np.float32), shapes) for v in (0, 1))
  optimizer = make_optimizer(config, 80_000)
  first_update = jax.jit(lambda gradient, params: optimizer.update(gradient, optimizer.init(params), params)[0])
  decayed, moved = first_update(zero, one), first_update(one, zero)
  stats = jax.tree.map(np.zeros_like, zero)
  decayed, moved = (to_reference('bisenet', {'params': t, 'batch_stats': _norms(stats)}) for t in (decayed, moved))
  groups = about['values']['groups']
  assert sum(map(len, groups.values())) == len(jax.tree.leaves(shapes))
  for group, names in groups.items():
    rate = 1e-5 * (10 if group.endswith('x10') else 1)
    for name in names:
      np.testing.assert_allclose(moved[name], -rate, rtol=1e-5, err_msg=name)
      np.testing.assert_allclose(decayed[name], 0 if group.startswith('no') else -rate * 5e-4, rtol=1e-5, err_msg=name)


def _norms(params):
  """Moving statistics for every BatchNorm in `params`."""
  if 'scale' in params:
    return {'mean': params['scale'], 'var': params['bias']}
  return {name: _norms(part) for name, part in params.items() if isinstance(part, dict)}


@pytest.fixture(scope='module')
def golden():
  """Two steps of the public network under the public recipe; labels go in in our order."""
  about, tensors, arrays = load('bisenet/train_step')
  config = _config('celebamask_hq')
  config.total_steps, config.model.image_size, config.model.label_order = 20, 64, 'bisenet'
  config.optimizer.update(warmup_steps=4, warmup_from=1e-3)
  task = make_task(_plain(config))
  _, variables = from_reference('bisenet', tensors)
  params = variables['params']
  state = first_state(params, variables['batch_stats'], jax.jit(task.optimizer.init)(params))
  label = labels.lookup_table('bisenet')[arrays['labels']]
  batch = {'image': arrays['image'], 'label': label, 'row': np.arange(4, dtype=np.int32)}
  step = jax.jit(task.train_step)
  states, metrics = [state], []
  for _ in range(2):
    state, terms = step(states[-1], batch, jax.random.key(0))
    states.append(state)
    metrics.append(terms)
  return about, arrays, states, metrics


def test_train_step_reports_the_losses_of_the_public_code(golden):
  about, arrays, _, metrics = golden
  for i, terms in enumerate(metrics, start=1):
    for ours, theirs in (('main', 'main'), ('aux8', 'aux16'), ('aux16', 'aux32')):
      expected = arrays[f'before_step{i}/{theirs}']
      np.testing.assert_allclose(terms[ours], expected, rtol=about['tolerance']['losses_relative'])
    np.testing.assert_allclose(terms['loss'], terms['main'] + terms['aux8'] + terms['aux16'], rtol=1e-6)


def test_train_step_moves_the_tensors_as_the_public_code_does(golden):
  about, arrays, states, _ = golden
  for i, state in enumerate(states[1:], start=1):
    ours = to_reference('bisenet', {'params': state.params, 'batch_stats': state.model_state})
    checked = [name.removeprefix(f'step{i}/') for name in arrays if name.startswith(f'step{i}/')]
    assert len(checked) == 9
    for name in checked:
      tolerance = about['tolerance']['tensors_max_abs']
      np.testing.assert_allclose(ours[name], arrays[f'step{i}/{name}'], rtol=0, atol=tolerance, err_msg=name)


def _labelled(size=48, rows=6):
  """Pictures whose colour tells the label, exactly, in squares of four pixels."""
  label = np.random.default_rng(0).integers(0, 19, (rows, size // 4, size // 4), np.uint8).repeat(4, 1).repeat(4, 2)
  return {'image': (label[..., None] / np.float32(18)).repeat(3, -1), 'label': label}


def _augmented(augment, batch, seed=0):
  keys = jax.random.split(jax.random.key(seed), len(batch['image']))
  return jax.tree.map(np.asarray, jax.jit(augment)(batch, keys))


@pytest.mark.parametrize('scale', [0.75, 1.0, 2.0])
def test_crops_keep_pictures_and_labels_together(scale):
  batch = _labelled()
  out = _augmented(ParsingAugment(crop_size=32, scales=(scale,)), batch)
  assert out['image'].shape == (6, 32, 32, 3)
  assert out['label'].shape == (6, 32, 32)
  assert out['label'].dtype == np.uint8
  expected = out['label'][..., None] / 18
  if scale == 1.0:
    np.testing.assert_allclose(out['image'], expected.repeat(3, -1), atol=1e-6)
    offsets = []
    for row in range(6):
      found = [
        (y, x) for y, x in np.ndindex(17, 17)
        if np.array_equal(out['label'][row], batch['label'][row, y : y + 32, x : x + 32])
      ]  # fmt: skip
      assert found
      offsets += found
    assert len(set(offsets)) > 3
  else:
    # Between squares the picture is mixed, the label is not.
    assert (np.abs(out['image'] - expected).max(-1) < 1e-3).mean() > 0.1
    error = lambda shift: np.abs(np.roll(out['image'], shift, (1, 2)) - expected).mean()
    assert error((0, 0)) < min(error((1, 0)), error((-1, 0)), error((0, 1)), error((0, -1)))


def test_small_pictures_are_enlarged_to_the_crop():
  out = _augmented(ParsingAugment(crop_size=64, scales=(0.5,)), _labelled(32))
  assert out['image'].shape == (6, 64, 64, 3)
  np.testing.assert_array_equal(out['label'], _labelled(32)['label'].repeat(2, 1).repeat(2, 2))


def test_a_mirrored_picture_has_left_and_right_labels_changed():
  batch = _labelled()
  out = _augmented(ParsingAugment(crop_size=48, flip=True), batch)
  kinds = []
  for row in range(6):
    mirrored = np.array_equal(out['label'][row], labels.MIRROR[batch['label'][row, :, ::-1]])
    assert mirrored or np.array_equal(out['label'][row], batch['label'][row])
    expected = batch['image'][row, :, ::-1] if mirrored else batch['image'][row]
    np.testing.assert_allclose(out['image'][row], expected, atol=1e-6)
    kinds.append(mirrored)
  assert 0 < sum(kinds) < 6


def test_colour_stays_in_range_and_labels_untouched():
  rng = np.random.default_rng(0)
  batch = {'image': rng.random((6, 32, 32, 3), np.float32), 'label': rng.integers(0, 19, (6, 32, 32), np.uint8)}
  brightened = _augmented(ParsingAugment(crop_size=32, brightness=0.5), batch)['image']
  factors = np.median(brightened / batch['image'], (1, 2, 3))
  assert ((factors > 0.5) & (factors < 1.5)).all()
  assert len(set(factors.round(4))) == 6
  expected = np.clip(batch['image'] * factors[:, None, None, None], 0, 1)
  np.testing.assert_allclose(brightened, expected, atol=1e-5)
  out = _augmented(ParsingAugment(crop_size=32, brightness=0.5, contrast=0.5, saturation=0.5), batch)
  assert out['image'].min() >= 0
  assert out['image'].max() <= 1
  np.testing.assert_array_equal(out['label'], batch['label'])


_OF_PILLOW = {
  'brightness': ImageEnhance.Brightness,
  'contrast': ImageEnhance.Contrast,
  'saturation': ImageEnhance.Color,
}


@pytest.fixture(scope='module')
def coloured_picture():
  """Of strong colours, 8-bit, with means of the channels far apart, which a contrast by channels would pivot on."""
  rng = np.random.default_rng(0)
  return (rng.random((24, 20, 3)) ** np.array([0.4, 1, 2.5]) * 255).round().astype(np.uint8)


@pytest.mark.parametrize('kind', _OF_PILLOW)
def test_colour_is_changed_as_pillow_changes_it(kind, coloured_picture):
  change = jax.jit(functools.partial(enhanced, kind=kind))
  for factor in (0.5, 0.75, 1.0, 1.25, 1.5):
    expected = np.asarray(_OF_PILLOW[kind](Image.fromarray(coloured_picture)).enhance(factor)) / 255
    # Pillow rounds its greys, and results down.
    np.testing.assert_allclose(change(coloured_picture / 255, factor=factor), expected, rtol=0, atol=1.5 / 255)


def _pillow_in_turn(picture, factors):
  """`picture` uint8 enhanced by `factors`, in their order, by Pillow -> [0, 1]."""
  image = Image.fromarray(picture)
  for kind, factor in factors.items():
    image = _OF_PILLOW[kind](image).enhance(factor)
  return np.asarray(image) / 255


def test_colour_changes_follow_one_another_as_published(coloured_picture, monkeypatch):
  drawn = dict(zip(_OF_PILLOW, (1.4, 0.6, 1.5), strict=True))
  factors = iter(drawn.values())

  def uniform(key, shape, minval, maxval):
    assert (minval, maxval) == (0.5, 1.5)
    return next(factors)

  monkeypatch.setattr(jax.random, 'uniform', uniform)
  augment = ParsingAugment(crop_size=32, brightness=0.5, contrast=0.5, saturation=0.5)
  found = augment._recolour(coloured_picture / np.float32(255), jax.random.key(0))
  error = lambda factors: np.abs(found - _pillow_in_turn(coloured_picture, factors)).max()
  # Three roundings, of which the first two are enlarged.
  assert error(drawn) < 4 / 255
  # In any other order, where something is clipped between, it is another picture.
  for order in (('contrast', 'brightness', 'saturation'), ('brightness', 'saturation', 'contrast')):
    assert error({kind: drawn[kind] for kind in order}) > 12 / 255


@pytest.mark.parametrize('kind', ['contrast', 'saturation'])
def test_each_row_has_a_factor_of_its_own(kind):
  image = np.random.default_rng(0).uniform(0.4, 0.6, (6, 32, 32, 3)).astype(np.float32)  # Nothing is clipped.
  batch = {'image': image, 'label': np.zeros((6, 32, 32), np.uint8)}
  changed = _augmented(ParsingAugment(crop_size=32, **{kind: 0.5}), batch)['image']
  red_less_blue = lambda image: image[..., 0] - image[..., 2]
  factors = np.median(red_less_blue(changed) / red_less_blue(image), (1, 2))
  assert ((factors > 0.5) & (factors < 1.5)).all()
  assert len(set(factors.round(4))) == 6
  expected = [enhanced(row, kind, factor) for row, factor in zip(image, factors, strict=True)]
  np.testing.assert_allclose(changed, expected, atol=1e-5)


@pytest.fixture(scope='module')
def faces(data_dir):
  """Three of the embedded faces, 4 pixels large, in squares of 16: two cells of the features, an eighth of the size."""
  from jaxface.input_pipeline import load_whole, open_dataset

  whole = load_whole(
    open_dataset('synthetic_faces/faces_16', 'train', ('image', 'label'), image_size=4, data_dir=data_dir)
  )
  enlarged = {name: values[:3].repeat(16, 1).repeat(16, 2) for name, values in whole.items()}
  return enlarged | {'row': np.arange(3, dtype=np.int32)}


@pytest.fixture(scope='module')
def overfitted(faces):
  """A small parser with the public order of classes, its state after learning `faces`, and the figures it reached."""
  config = _plain(_config('synthetic,smoke'))
  config.model.update(image_size=64, width_multiplier=1 / 8, label_order='bisenet')
  config.augment.crop_size = 64
  config.optimizer.update(name='adam', learning_rate=0.01, warmup_from=0.0, decay='constant', l2=0.0)
  config.optimizer.rates = {}
  config.ema_decay = 0.5
  task = make_task(config)
  state = untrained_state(task)
  step = jax.jit(task.train_step)
  evaluate = jax.jit(task.eval_step)
  before = state
  for i in range(250):
    before, (state, _) = state, step(state, faces, jax.random.key(1))
    if i % 10 == 9:
      measures = evaluate(for_evaluation(state), faces, jax.random.key(0))
      figures = task.summary({name: np.asarray(values, np.float64).mean(0) for name, values in measures.items()})
      if figures['miou'] > 0.95:
        break
  return task, before, state, figures


def test_a_few_faces_are_learnt_by_heart(overfitted):
  assert overfitted[-1]['miou'] > 0.95


def test_figures_are_those_of_the_predicted_label_maps(overfitted, faces):
  task, _, state, figures = overfitted
  predicted = np.asarray(jax.jit(task.predict)(for_evaluation(state), faces['image']))
  assert predicted.dtype == np.uint8
  assert figures['accuracy'] == pytest.approx((predicted == faces['label']).mean(), rel=1e-5)
  ious = {}
  for i, name in enumerate(labels.CLASSES):
    both, either = ((op(predicted == i, faces['label'] == i)).sum() for op in (np.logical_and, np.logical_or))
    if either:
      ious[f'iou/{name}'] = both / either
  assert {name for name in figures if name.startswith('iou/')} == set(ious)
  assert len(ious) < 19
  for name, iou in ious.items():
    assert figures[name] == pytest.approx(iou, rel=1e-5)
  assert figures['miou'] == pytest.approx(np.mean(list(ious.values())), rel=1e-5)
  assert figures['mean_f1'] == pytest.approx(np.mean([2 * iou / (1 + iou) for iou in ious.values()]), rel=1e-5)
  assert list(figures)[:4] == ['loss', 'miou', 'mean_f1', 'accuracy']
  # The network has classes of its own order.
  scores = np.asarray(jax.nn.log_softmax(jax.jit(task._logits)(for_evaluation(state), faces['image'])))
  own = np.argsort(labels.lookup_table('bisenet'))[faces['label']]
  assert figures['loss'] == pytest.approx(-np.take_along_axis(scores, own[..., None], -1).mean(), rel=1e-4)


def test_pictures_show_labels_in_their_colours(overfitted, faces):
  task, _, state, _ = overfitted
  shown = jax.jit(task.render)(for_evaluation(state), faces, jax.random.key(0))
  assert set(shown) == set(task.columns)
  np.testing.assert_allclose(shown['true labels'], labels.PALETTE[faces['label']] / 255, atol=1e-6)
  np.testing.assert_allclose(shown['input'], faces['image'] / 255, atol=1e-6)
  assert (np.abs(shown['predicted labels'] - shown['true labels']).max(-1) < 1e-6).mean() > 0.95
  np.testing.assert_allclose(shown['overlay'], 0.45 * shown['input'] + 0.55 * shown['predicted labels'], atol=1e-6)
  assert all(((picture >= 0) & (picture <= 1)).all() for picture in shown.values())


def test_the_averaged_copy_follows_the_parameters(overfitted):
  _, before, after, _ = overfitted
  mixed = jax.tree.map(lambda old, new: 0.5 * np.asarray(old) + 0.5 * np.asarray(new), before.ema, after.params)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), after.ema, mixed)


def test_scores_counted_by_hand():
  true = np.array([[[0, 0, 1, 1]], [[2, 2, 255, 2]]])
  predicted = np.array([[[0, 1, 1, 1]], [[2, 2, 2, 0]]])
  found = segmentation.overlap(true, predicted, 5)
  np.testing.assert_allclose(found.intersection, np.array([[1, 2, 0, 0, 0], [0, 0, 2, 0, 0]]) / 4)
  np.testing.assert_allclose(found.union, np.array([[2, 3, 0, 0, 0], [1, 0, 3, 0, 0]]) / 4)
  np.testing.assert_allclose(found.counted, [1, 0.75])
  figures = segmentation.scores(*(np.asarray(value).mean(0) for value in found))
  np.testing.assert_allclose(figures['iou'], [1 / 3, 2 / 3, 2 / 3, np.nan, np.nan])
  np.testing.assert_allclose(figures['f1'], [1 / 2, 4 / 5, 4 / 5, np.nan, np.nan])
  assert figures['miou'] == pytest.approx(5 / 9)
  assert figures['accuracy'] == pytest.approx(5 / 7)


@pytest.mark.parametrize('arg', [v + f for v in ('celebamask_hq', 'synthetic') for f in ('', ',demo', ',smoke')])
def test_every_config_builds(arg):
  task = make_task(_config(arg))
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  if ',' not in arg:
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes.params)) == 13_300_416


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'model.label_order': 'bise'}, "unknown model.label_order 'bise'; choose from celebamask_hq, bisenet"),
    ({'model.dtype': 'float16'}, "unknown model.dtype 'float16'"),
    ({'model.image_size': 16}, 'model.image_size=16 is too small'),
    ({'batch_size': 1}, 'batch_size=1: .* single pictures; give at least 2'),
    ({'batch_size': 8, 'accumulate_steps': 8}, 'batch_size=8 in 8 pieces: .* give at least 16'),
    ({'augment.crop_size': 16}, 'augment.crop_size=16 is too small'),
    ({'augment.scales': ()}, r'augment.scales=\(\)'),
    ({'loss.least_share': 2.0}, 'least_share=2.0'),
    ({'loss.threshold': 0.0}, 'threshold=0.0'),
  ],
)
def test_wrong_choices_say_what_is_right(changes, message):
  config = _config('synthetic,smoke')
  config.update_from_flattened_dict(changes)
  with pytest.raises(UserError, match=message):
    make_task(config)


def test_one_picture_may_be_evaluated_by_itself():
  config = _config('synthetic,smoke')
  config.batch_size = 1
  make_task(config, training=False)


def test_a_rate_for_an_unknown_part_says_what_there_is():
  with pytest.raises(UserError, match="optimizer.rates names 'heads'; the network has context, head"):
    scale_rates({'heads': 10.0}).update({'context': jnp.ones(2), 'head': jnp.ones(2)}, optax.EmptyState())
  with pytest.raises(UserError, match="optimizer.rates names 'last'; the network has first"):
    scale_rates({'head/last': 10.0}).update({'head': {'first': jnp.ones(2)}}, optax.EmptyState())
  within = {'head': {'first': jnp.ones(2), 'last': jnp.ones(2)}, 'context': jnp.ones(2)}
  scaled = scale_rates({'head/last': 10.0}).update(within, optax.EmptyState())[0]
  jax.tree.map(np.testing.assert_array_equal, scaled, {**within, 'head': {**within['head'], 'last': 10 * np.ones(2)}})


def test_what_the_configuration_says_reaches_the_task():
  config = _config('synthetic,smoke')
  config.update_from_flattened_dict(
    {
      'loss.threshold': 0.4, 'loss.least_share': 0.25, 'augment.crop_size': 48, 'augment.scales': (1.0, 3.0),
      'augment.flip': False, 'augment.brightness': 0.1, 'augment.contrast': 0.2, 'augment.saturation': 0.3,
      'accumulate_steps': 2, 'ema_decay': 0.5, 'model.label_order': 'bisenet', 'model.image_size': 64,
    }
  )  # fmt: skip
  with config.unlocked():
    config.model.head_width = 5  # As a converted network says it.
  task = make_task(config, 'devices')
  assert task.loss == ParsingLoss(threshold=0.4, least_share=0.25, axis_name='devices')
  assert task.augment == ParsingAugment(48, (1.0, 3.0), False, 0.1, 0.2, 0.3)
  assert (task.accumulate_steps, task.ema_decay, task.label_order, task.image_size) == (2, 0.5, 'bisenet', 64)
  assert (task.model.axis_name, task.model.head_width) == ('devices', 5)


def test_the_loss_counts_the_share_of_pixels_that_it_is_told():
  logits = Logits(*jax.random.normal(jax.random.key(0), (3, 2, 4, 4, 19)))
  label = jax.random.randint(jax.random.key(1), (2, 4, 4), 0, 19)
  loss, terms = ParsingLoss(threshold=0.01, least_share=0.25)(logits, label)  # Hardly a pixel is as hard as that.
  for name, head in logits._asdict().items():
    expected = ohem_cross_entropy(head, label, threshold=0.01, least=8)
    np.testing.assert_allclose(terms[name], expected, rtol=1e-6, err_msg=name)
    assert not np.isclose(expected, ohem_cross_entropy(head, label, threshold=0.01, least=2))
  np.testing.assert_allclose(loss, sum(terms[name] for name in logits._fields), rtol=1e-6)


def test_every_step_and_row_is_varied_anew(monkeypatch):
  drawn = []
  own = lambda state, batch, loss_fn, *_, **__: loss_fn(None, None, batch)
  monkeypatch.setattr('jaxface.tasks.parsing.update', own)

  def augment(batch, keys):
    drawn.append(jax.random.key_data(keys))
    raise StopIteration

  task = dataclasses.replace(make_task(_config('synthetic,smoke')), augment=augment)
  batch = {'image': np.zeros((2, 32, 32, 3), np.uint8), 'row': np.arange(2)}
  for seed in (0, 1):
    with pytest.raises(StopIteration):
      task.train_step(None, batch, jax.random.key(seed))
  assert len(np.unique(np.concatenate(drawn), axis=0)) == 4


def test_crops_begin_anywhere_down_and_across():
  places = np.mgrid[:64, :64].transpose(1, 2, 0)[None].repeat(16, 0) / np.float32(63)
  batch = {'image': np.concatenate([places, 0 * places[..., :1]], -1), 'label': np.zeros((16, 64, 64), np.uint8)}
  cropped = _augmented(ParsingAugment(crop_size=32), batch)['image']
  down, across = np.rint(63 * cropped[:, 0, 0, :2]).astype(int).T
  assert len(set(down)) > 8
  assert len(set(across)) > 8
  assert (down != across).mean() > 0.5
  assert max(down.max(), across.max()) <= 32
