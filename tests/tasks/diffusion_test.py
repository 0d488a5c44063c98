"""The diffusion systems' steps: what rows are given, what is averaged, what drawing computes once, what is measured."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxface import labels
from jaxface.augment import Zoom, to_signed
from jaxface.diffusion import samplers, training
from jaxface.diffusion.schedule import linear
from jaxface.errors import UserError
from jaxface.fields import take
from jaxface.models.scadm import Conditioning
from jaxface.models.sdm import condition_map
from jaxface.parallel import JitEngine, make_mesh
from jaxface.state import TrainState, first_state, for_evaluation
from jaxface.tasks import make_task
from jaxface.tasks import scadm as scadm_task
from jaxface.tasks.diffusion import MASK_ONLY, NOTHING, Objective, Sampling, content_keys
from jaxface.tasks.first_stage import FirstStage
from jaxface.tasks.scadm import ScaDmTask
from jaxface.tasks.sdm import SdmTask
from jaxface.tasks.task import coloured
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


def test_as_many_rows_lose_their_style_as_asked(scadm):
  task, state = scadm
  task = dataclasses.replace(task, discard_rate=0.2)
  image = np.full((1000, 2, 2, 3), 255, np.uint8)
  batch = {'image': image, 'label': image[..., 0], 'latent': image}
  rows = task.rows(state, batch, jax.random.split(jax.random.key(0), 1000))
  assert (rows['style'] == 0).all((1, 2, 3)).mean() == pytest.approx(0.2, abs=0.04)


class _MeanStyle(ScaDmTask):
  """A picture's style is its mean, in every class."""

  def style(self, params, image, label):
    return jnp.broadcast_to(image.mean((1, 2, 3))[:, None, None], (len(image), labels.NUM_CLASSES, 1))


def test_each_mode_is_given_the_style_that_it_is_named_after(scadm):
  task, state = scadm
  task = _MeanStyle(**{field.name: getattr(task, field.name) for field in dataclasses.fields(ScaDmTask)})
  mean = np.array([0.1, 0.2, 0.4], np.float32)
  image = jnp.broadcast_to(mean[:, None, None, None], (3, 2, 2, 3))
  shown = task.shown(state, image, jnp.zeros((3, 2, 2), jnp.int32))
  found = {name: np.asarray(given.tokens[:, 0, 0]) for name, given in shown.items()}
  assert found.keys() == {'own style', MASK_ONLY, "next row's style"}
  np.testing.assert_allclose(found['own style'], mean, rtol=1e-5)
  np.testing.assert_allclose(found["next row's style"], np.roll(mean, -1), rtol=1e-5)
  assert not found[MASK_ONLY].any()


def test_the_attention_loss_has_its_weight(scadm, monkeypatch):
  task, state = scadm
  task = dataclasses.replace(task, attention_weight=0.01)
  monkeypatch.setattr(scadm_task, 'denoise_with_scores', lambda unet, variables, x, t, given: (x, []))
  monkeypatch.setattr(training, 'attention_loss', lambda scores, label, kind: jnp.float32(3))
  zeros = jnp.zeros((1, *task.x_shape))
  rows = {'x0': zeros, 'noise': zeros, 't': jnp.zeros(1, jnp.int32), 'label': None}
  assert float(task.terms(state.params, rows, None)['attention']) == pytest.approx(0.03)


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


def test_the_public_average_lacks_the_style_encoder(scadm):
  task, state = scadm
  task = dataclasses.replace(task, ema_decay=0.99, optimizer=optax.sgd(0.1))
  moved = state.replace(ema=jax.tree.map(np.zeros_like, state.params), opt_state=task.optimizer.init(state.params))
  batch = _batch(task.image_size)
  step = lambda task: jax.jit(task.train_step)(moved, batch, jax.random.key(0))[0]
  after = step(task)
  # At the first update the decay is 2 / 11.
  expected = jax.tree.map(lambda leaf: leaf * np.float32(9 / 11), after.params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), after.ema, expected)
  public = step(dataclasses.replace(task, average_style=False)).ema
  jax.tree.map(np.testing.assert_array_equal, public['style'], after.params['style'])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), public['unet'], expected['unet'])


class _OneWeight:
  """Stands for a network of one parameter: says the noise is so many times x, and nothing of the variance."""

  def apply(self, variables, x, t, given):
    return jnp.concatenate([variables['params']['w'] * x, jnp.zeros_like(x)], -1)


@pytest.mark.parametrize('warmup', [True, False])
def test_the_averaged_copy_follows_the_parameters(warmup):
  """Through the step itself: an average that is overwritten before it is updated is no average."""
  task = dataclasses.replace(
    _system('sdm')[0], unet=_OneWeight(), optimizer=optax.sgd(0.1), image_size=8, ema_decay=0.9, ema_warmup=warmup
  )
  params = {'unet': {'w': jnp.float32(0)}}
  state = first_state(params, None, task.optimizer.init(params), ema=params)
  step, average = jax.jit(task.train_step), 0.0
  for n in range(1, 4):
    state, _ = step(state, _batch(8), jax.random.key(n))
    decay = min(0.9, (1 + n) / (10 + n)) if warmup else 0.9
    average = decay * average + (1 - decay) * float(state.params['unet']['w'])
    np.testing.assert_allclose(state.ema['unet']['w'], average, rtol=1e-5)
    assert float(state.params['unet']['w']) > 1.05 * average
  assert for_evaluation(state).params is state.ema


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


class _Says:
  """Stands for a network: `says(x, t, given)` is its output."""

  def __init__(self, says):
    self.says = says

  def apply(self, variables, x, t, given):
    return jnp.broadcast_to(self.says(x, t.reshape(-1, 1, 1, 1).astype(jnp.float32), given), x.shape)


class _Plain(SdmTask):
  """A diffusion of pictures whose network says nothing of the variance; a second mode is given nothing."""

  def learned(self, output):
    return output

  def modes(self, state, image, label):
    return {**super().modes(state, image, label), 'nothing': 0 * condition_map(label)}


class _Unclipped(_Plain):
  """Shows pictures of -8 to 8 as 0 to 1."""

  def decode(self, state, x0):
    return x0 / 8


_NO_STATE = TrainState(jnp.zeros((), jnp.int32), {'unet': {}}, None, None)
_SHARES = jnp.asarray(linear().alphas_cumprod, jnp.float32)


def _plain(says, kind='eps', task=_Plain, *, clip=True, drop_rate=0.0):
  schedule = linear()
  sampling = Sampling(samplers.ddim(schedule, 10), clip=clip, cached=False)
  objective = Objective(kind)
  return task(_Says(says), schedule, objective, sampling, optax.identity(), image_size=8, drop_rate=drop_rate)


def _knows(picture, kind):
  """A network that knows the picture: the noise in x, the picture, or the velocity."""

  def says(x, t, given):
    a = _SHARES[t.astype(jnp.int32)]
    eps = (x - jnp.sqrt(a) * picture) / jnp.sqrt(1 - a)
    return {'x0': picture, 'eps': eps, 'v': jnp.sqrt(a) * eps - jnp.sqrt(1 - a) * picture}[kind]

  return says


def _row_keys(count=ROWS):
  return jax.random.split(jax.random.key(4), count)


def test_evaluation_measures_every_part_of_the_noise_levels_in_every_mode():
  # Where something is given the error is the timestep itself, beside which the noise is small; else the noise's.
  task = _plain(lambda x, t, given: jnp.where(given.any((1, 2, 3), keepdims=True), t, 0.0))
  found = jax.jit(task.eval_step)(_NO_STATE, _batch(8), jax.random.key(0))
  lowest = np.array([0, 250, 500, 750])
  mine = np.asarray(found[f'{MASK_ONLY}/loss'])
  assert (np.square(lowest).mean() < mine).all()
  assert (mine < np.square(lowest + 250).mean()).all()
  np.testing.assert_allclose(found['nothing/loss'], 1, atol=0.3)


@pytest.mark.parametrize('kind', ['x0', 'v'])
def test_evaluation_compares_with_what_the_network_predicts(kind):
  batch = _batch(8)
  image = jnp.asarray(batch['image'] / np.float32(127.5) - 1)
  task = _plain(_knows(jnp.repeat(image, 2, 0), kind), kind)  # Of both modes, row by row.
  for losses in jax.jit(task.eval_step)(_NO_STATE, batch, jax.random.key(0)).values():
    np.testing.assert_allclose(losses, 0, atol=1e-3)


def test_rows_draw_any_timestep_unit_noise_and_whether_they_are_given_nothing():
  drawn = jax.jit(jax.vmap(_plain(None, drop_rate=0.2)._drawn))(_row_keys(4000))
  share, _ = np.histogram(drawn['t'], 10, (0, 1000))
  np.testing.assert_allclose(share / 4000, 0.1, atol=0.02)
  assert 0 <= drawn['t'].min() <= 2
  assert 997 <= drawn['t'].max() <= 999
  np.testing.assert_allclose([drawn['noise'].mean(), drawn['noise'].std()], [0, 1], atol=0.01)
  assert drawn['drop'].mean() == pytest.approx(0.2, abs=0.03)


def test_every_timestep_is_trained():
  task = dataclasses.replace(_plain(None), schedule=linear(timesteps=4))
  assert set(np.asarray(jax.vmap(task._drawn)(_row_keys(200))['t'])) == {0, 1, 2, 3}


class _TwoTerms(_Plain):
  def terms(self, params, rows, given):
    return {'denoising': params, 'variance': 2 * params}

  def given_rows(self, params, rows):
    return None


def test_all_terms_are_descended():
  loss, (_, metrics) = _plain(None, task=_TwoTerms)._loss(jnp.float32(1), None, {})
  assert (float(loss), float(metrics['loss'])) == (3, 3)


def test_sdm_gives_dropped_rows_nothing_and_trains_on_pictures_in_the_signed_range():
  task, batch = _plain(None), _batch(8)
  rows = task.rows(_NO_STATE, batch, _row_keys())
  np.testing.assert_allclose(rows['x0'], batch['image'] / 127.5 - 1, atol=1e-6)
  drop = np.arange(ROWS) % 3 == 0
  given = task.given_rows(None, rows | {'drop': drop})
  assert not np.asarray(given)[drop].any()
  np.testing.assert_array_equal(given[~drop], condition_map(jnp.asarray(batch['label'], jnp.int32))[~drop])


def test_the_error_of_each_timestep_has_its_weight():
  schedule, t = linear(), np.array([0, 300, 999])
  zeros = np.zeros((3, 2, 2, 1), np.float32)
  rows = {'x0': zeros, 'noise': zeros + 1, 't': t}
  found = Objective('x0', 'min_snr', gamma=2.0).row_losses(schedule, zeros + np.float32(0.5), rows)
  weights = training.loss_weights('min_snr', schedule, 'x0', gamma=2.0)[t]
  assert len(np.unique(weights)) == 3
  np.testing.assert_allclose(found, 0.25 * weights, rtol=1e-5)
  found = Objective('x0', 'min_snr', gamma=2.0, distance='l1').row_losses(schedule, zeros + np.float32(0.5), rows)
  np.testing.assert_allclose(found, 0.5 * weights, rtol=1e-5)


@pytest.mark.parametrize('kind', ['x0', 'v', 'eps'])
def test_drawing_follows_a_network_of_any_kind_to_its_picture(kind):
  picture = np.random.default_rng(0).uniform(-1, 1, (1, 8, 8, 3)).astype(np.float32)
  task = _plain(_knows(picture, kind), kind)
  drawn = jax.jit(lambda keys: task.draw(_NO_STATE, jnp.zeros((2, 8, 8, 20)), keys))(_row_keys(2))
  # The last step leaves the noise of t = 0, a hundredth.
  np.testing.assert_allclose(drawn, np.repeat((picture + 1) / 2, 2, 0), atol=0.04)


@pytest.mark.parametrize(('clip', 'brightest'), [(True, 1), (False, 3)])
def test_what_a_step_takes_the_picture_to_be_is_held_in_range_where_that_is_asked_for(clip, brightest):
  task = _plain(lambda x, t, given: 0 * x + 3, 'x0', _Unclipped, clip=clip)
  drawn = jax.jit(lambda keys: task.draw(_NO_STATE, jnp.zeros((1, 8, 8, 20)), keys))(_row_keys(1))
  np.testing.assert_allclose(8 * (2 * drawn.mean() - 1), brightest, atol=0.05)


def test_pictures_are_drawn_twice_by_other_noise_to_tell_how_diverse_they_are():
  batch = _batch(8)
  found = jax.jit(lambda: _plain(lambda x, t, given: 0.5 * x).compared(_NO_STATE, batch)._asdict())()
  for mode in (MASK_ONLY, 'nothing'):
    once, again = found['repeats'][mode]
    np.testing.assert_array_equal(once, found['sets'][mode])
    assert np.abs(once - again).mean() > 0.02
    np.testing.assert_array_equal(found['asked'][mode][1], once)
  np.testing.assert_allclose(found['real'], batch['image'] / 255, atol=1e-6)


class _Coded(_Plain):
  def coded(self, state, image):
    return {'coded': 0 * image + 0.5}


def test_pictures_are_measured_and_shown_by_the_mode_that_they_are_drawn_in():
  # Bright where something is given, else dark.
  task = _plain(lambda x, t, given: jnp.where(given.any((1, 2, 3), keepdims=True), 0.6, -0.6), 'x0', _Coded)
  batch = _batch(8)
  found, shown = jax.jit(
    lambda: (task.compared(_NO_STATE, batch)._asdict(), task.render(_NO_STATE, batch, jax.random.key(0)))
  )()
  true = batch['image'] / np.float32(255)
  close = functools.partial(np.testing.assert_allclose, atol=0.04)
  wanted = {MASK_ONLY: 0.8, 'nothing': 0.2}
  for mode, level in wanted.items():
    for picture in (found['sets'][mode], *found['repeats'][mode], found['asked'][mode][1], shown[mode]):
      close(picture, level)
  assert found['pairs'].keys() == {*wanted, 'coded'}
  for mode, level in (wanted | {'coded': 0.5}).items():
    close(found['pairs'][mode][0], true)
    close(found['pairs'][mode][1], level)
  close(found['asked']['true pictures'][1], true)
  np.testing.assert_array_equal(found['asked'][MASK_ONLY][0], batch['label'])
  close(shown['input'], true)
  np.testing.assert_array_equal(shown['label map'], coloured(jnp.asarray(batch['label'], jnp.int32)))


class _Halves:
  """An autoencoder whose latents are half of a picture's values."""

  def apply(self, variables, x, method):
    return {'encode': 0.5 * x, 'decode': 2 * x}[method]


def test_latents_are_scaled_on_their_way_in_and_back_on_their_way_out():
  image = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 4, 4, 3)), jnp.float32)
  stage = FirstStage(_Halves(), scale=4.0)
  np.testing.assert_allclose(stage.encode({}, image), 2 * image, rtol=1e-6)
  np.testing.assert_allclose(stage.decode({}, 2 * image), image, rtol=1e-6)


def test_what_the_configuration_says_reaches_the_tasks():
  config = experiment('scadm', 'published', None)
  config.loss.update(discard_rate=0.3, drop_rate=0.1, attention='l2', attention_weight=0.02)
  config.loss.update(prediction='v', weighting='min_snr', gamma=3.0, distance='l1')
  config.ema_decay, config.average_style, config.first_stage.scale = 0.5, False, 1.5
  config.schedule.update(start=0.001, end=0.01)
  config.sampling.update(name='ddim', steps=10, eta=0.5, guidance=3.0)
  config.model.update(num_blocks=3, spade_hidden=6, remat=True, style_width=3, style_dim=5)
  config.accumulate_steps = 2
  task = make_task(config, 'devices')
  assert (task.discard_rate, task.drop_rate, task.attention_loss, task.attention_weight) == (0.3, 0.1, 'l2', 0.02)
  assert task.objective == Objective('v', 'min_snr', 3.0, 'l1')
  assert (task.ema_decay, task.average_style, task.first_stage.scale) == (0.5, False, 1.5)
  np.testing.assert_allclose(task.schedule.betas[[0, -1]], [0.001, 0.01])
  assert task.sampling.plan.draws
  # Latents are not bounded.
  assert not task.sampling.clip
  assert task.protocol['pictures'].endswith('10 steps, guidance 3')
  assert (task.unet.num_blocks, task.unet.spade_hidden, task.unet.remat) == (3, 6, True)
  assert (task.style_encoder.width, task.style_encoder.token_dim) == (3, 5)
  assert (task.accumulate_steps, task.axis_name) == (2, 'devices')
  config = experiment('sdm', 'published', None)
  config.augment.update(least=0.7, flip=True)
  config.loss.drop_rate, config.sampling.name = 0.1, 'ddpm'
  config.loss.update(weighting='min_snr', gamma=3.0)
  config.schedule.update(start=0.001, end=0.01)
  config.model.update(head_channels=8, remat=True)
  config.ema_decay, config.ema_warmup, config.accumulate_steps = 0.5, True, 2
  task = make_task(config, 'devices')
  assert task.objective == Objective('eps', 'min_snr', 3.0)
  np.testing.assert_allclose(task.schedule.betas[[0, -1]], [0.001, 0.01])
  assert (task.unet.head_channels, task.unet.remat) == (8, True)
  assert (task.ema_decay, task.ema_warmup, task.accumulate_steps, task.axis_name) == (0.5, True, 2, 'devices')
  config.ema_warmup = False
  assert not make_task(config).ema_warmup
  assert task.augment == Zoom(0.7, flip=True)
  assert task.sampling.clip
  assert task.sampling.plan.learned
  assert task.drop_rate == 0.1


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
