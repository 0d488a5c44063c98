"""The diffusion systems' steps: what rows are given, what is averaged, what drawing computes once, what is measured."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxface import labels
from jaxface.augment import to_signed
from jaxface.errors import UserError
from jaxface.fields import take
from jaxface.models.scadm import Conditioning
from jaxface.parallel import JitEngine, make_mesh
from jaxface.state import for_evaluation
from jaxface.tasks import diffusion, make_task
from jaxface.tasks.diffusion import NOTHING, content_keys
from tests.smoke import experiment, untrained_state

ROWS = 8


def _batch(size, seed=0):
  rng = np.random.default_rng(seed)
  coarse = rng.integers(0, labels.NUM_CLASSES, (ROWS, 4, 4), np.uint8)
  return {
    'image': rng.integers(0, 256, (ROWS, size, size, 3), np.uint8),
    'label': coarse.repeat(size // 4, 1).repeat(size // 4, 2),
    'row': np.arange(ROWS, dtype=np.int32),
  }


def _state(task):
  """A state with noise in all parameters: layers that start as zero would hide what comes before them."""
  state = untrained_state(task)
  leaves, tree = jax.tree.flatten(state.params)
  rng = np.random.default_rng(1)
  params = tree.unflatten([leaf / 2 + 0.05 * rng.standard_normal(leaf.shape, np.float32) for leaf in leaves])
  return state.replace(params=params, ema=params)


@functools.cache
def _system(name):
  """A task and a state."""
  task = make_task(experiment(name, 'published', None))
  return task, _state(task)


@pytest.fixture(scope='module', params=['scadm', 'sdm'])
def system(request):
  """A task, a state and a batch."""
  task, state = _system(request.param)
  return task, state, _batch(task.image_size)


def _modes(task, state, batch):
  return task.modes(state, to_signed(batch['image']), batch['label'].astype(jnp.int32))


def test_what_is_computed_once_changes_no_picture(system):
  task, state, batch = system
  light = for_evaluation(state)
  keys = jax.vmap(jax.random.key)(np.arange(ROWS))

  @jax.jit
  def draw(state, batch):
    given = list(_modes(task, state, batch).values())[-1]
    ways = {cached: dataclasses.replace(task.sampling, guidance=2.0, cached=cached) for cached in (True, False)}
    return {cached: task.draw(state, given, keys, sampling=way) for cached, way in ways.items()}

  pictures = draw(light, batch)
  assert pictures[True].shape == (ROWS, task.image_size, task.image_size, 3)
  assert pictures[True].std() > 0.01
  np.testing.assert_allclose(pictures[True], pictures[False], atol=2e-4)


def test_evaluation_is_a_function_of_the_example_alone():
  task, state = _system('sdm')
  batch = _batch(task.image_size)
  evaluate = jax.jit(task.eval_step)
  light = for_evaluation(state)
  first = evaluate(light, batch, jax.random.key(0))
  turned = {name: np.roll(values, 3, axis=0) for name, values in batch.items() if name != 'row'} | {'row': batch['row']}
  second = evaluate(light, turned, jax.random.key(5))
  assert first.keys() == {f'{mode}/loss' for mode in _modes(task, light, batch)}
  for name, values in first.items():
    np.testing.assert_allclose(np.roll(values, 3), second[name], rtol=1e-4)
  means = {name: np.asarray(values).mean() for name, values in first.items()}
  assert task.summary(means)['loss'] == pytest.approx(np.mean(list(means.values())))


def test_keys_tell_label_maps_apart():
  label = np.zeros((3, 8, 8), np.int32)
  label[1, 2, 3], label[2, 3, 2] = 1, 1
  keys = jax.random.key_data(content_keys(jnp.asarray(label)))
  assert len(np.unique(keys, axis=0)) == 3
  np.testing.assert_array_equal(keys[1], jax.random.key_data(content_keys(jnp.asarray(label[1:2])))[0])


@pytest.fixture(scope='module')
def scadm():
  return _system('scadm')


def test_rows_lose_their_style_or_everything(scadm):
  task, state = scadm
  task = dataclasses.replace(task, discard_rate=0.5, drop_rate=0.5)
  batch = _batch(task.image_size)
  rows = jax.jit(task.rows)(state, batch, jax.vmap(jax.random.key)(np.arange(ROWS)))
  discarded = np.asarray((rows['style'] == 0).all((1, 2, 3)))
  assert 0 < discarded.sum() < ROWS
  np.testing.assert_allclose(rows['style'][~discarded], batch['image'][~discarded] / 127.5 - 1, atol=1e-6)
  drop = np.arange(ROWS) % 2 == 0
  given = jax.jit(task.given_rows)(state.params, rows | {'drop': drop})
  assert (given.label[drop] == NOTHING).all()
  assert (given.tokens[drop] == 0).all()
  np.testing.assert_array_equal(given.label[~drop], batch['label'][~drop])
  # A style encoder given an empty picture is not silent: it still tells which parts there are.
  assert (np.abs(given.tokens[~drop]).max((1, 2)) > 0).all()
  empty = Conditioning(given.tokens[drop][:1], given.label[drop][:1])
  jax.tree.map(np.testing.assert_array_equal, task.nothing(), empty)


def test_latents_of_a_resident_dataset_are_those_of_the_step(scadm):
  task, state = scadm
  records = {name: values for name, values in _batch(task.image_size).items() if name != 'row'}
  engine = JitEngine(task, seed=0, mesh=make_mesh(1, jax.devices()))
  engine.put_dataset(records)
  latents = jax.jit(task.encode)(state, to_signed(records['image']))
  np.testing.assert_allclose(engine.dataset['latent'], latents, rtol=1e-4, atol=1e-5)
  pick = {'row': np.arange(ROWS, dtype=np.int32), 'index': np.arange(ROWS)[::-1].copy()}
  keys = jax.vmap(jax.random.key)(np.arange(ROWS))
  rows = jax.jit(task.rows)(state.replace(frozen=None), take(engine.dataset, pick), keys)
  np.testing.assert_array_equal(rows['x0'], engine.dataset['latent'][::-1])


def test_the_public_average_lacks_the_style_encoder(scadm, monkeypatch):
  task, state = scadm
  task = dataclasses.replace(task, ema_decay=0.99, optimizer=optax.sgd(0.1))
  monkeypatch.setattr(diffusion, 'update', lambda state, *_, **__: (state.replace(step=state.step + 1), {}))
  moved = state.replace(ema=jax.tree.map(np.zeros_like, state.params))
  batch = _batch(task.image_size)
  step = lambda task: jax.jit(task.train_step)(moved, batch, jax.random.key(0))[0]
  # At the first update the decay is 2 / 11.
  expected = jax.tree.map(lambda leaf: leaf * np.float32(9 / 11), state.params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), step(task).ema, expected)
  public = step(dataclasses.replace(task, average_style=False)).ema
  jax.tree.map(np.testing.assert_array_equal, public['style'], state.params['style'])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), public['unet'], expected['unet'])


def test_the_attention_loss_reaches_queries_and_keys(scadm):
  task, state = scadm
  task = dataclasses.replace(task, attention_weight=0.01)
  batch = _batch(task.image_size)

  @jax.jit
  def gradients(params, state):
    rows = task.rows(state, batch, jax.vmap(jax.random.key)(np.arange(ROWS)))
    rows |= {'t': np.full(ROWS, 500), 'noise': rows['x0'][::-1], 'drop': np.zeros(ROWS, bool)}
    terms, pullback = jax.vjp(lambda params: task.terms(params, rows, task.given_rows(params, rows)), params)
    zeros = jax.tree.map(jnp.zeros_like, terms)
    return {name: pullback(zeros | {name: jnp.ones_like(terms[name])})[0]['unet'] for name in terms}

  def largest(gradient):
    flat = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)}
    return max(float(jnp.abs(leaf).max()) for name, leaf in flat.items() if 'to_classes' in name and 'query' in name)

  found = gradients(state.params, state)
  assert largest(found['denoising']) == 0
  assert largest(found['attention']) > 0


@pytest.mark.parametrize(('name', 'key', 'value', 'told'), [
  ('scadm', 'first_stage.workdir', '', 'first_stage.workdir is empty; train one'),
  ('scadm', 'first_stage.workdir', '/nowhere', 'first_stage.workdir=/nowhere does not exist'),
  ('scadm', 'loss.attention_weight', 0.1, "unknown loss.attention 'x'; choose from bce, l2"),
  ('scadm', 'loss.prediction', 'y', "unknown prediction 'y'; choose from eps, x0, v"),
  ('scadm', 'loss.weighting', 'y', "unknown weighting 'y'; choose from simple"),
  ('scadm', 'model.image_size', 31, 'model.image_size=31 must be a multiple of 2'),
  ('sdm', 'sampling.name', 'y', "unknown sampler 'y'; choose from ddim"),
  ('sdm', 'sampling.guidance', -1.0, 'sampling.guidance=-1.0'),
  ('sdm', 'augment.least', 0.0, 'augment.least=0.0; it must be above 0'),
])  # fmt: skip
def test_what_cannot_work_is_refused(name, key, value, told):
  config = experiment(name, 'published', None)
  if name == 'scadm':
    config.loss.attention = 'x' if key == 'loss.attention_weight' else 'bce'
  with config.unlocked():
    config.update_from_flattened_dict({key: value})
  with pytest.raises(UserError, match=told):
    make_task(config)
