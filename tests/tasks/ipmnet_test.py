"""IPM-Net's losses, gradients and updates are the public code's; what is drawn is drawn row by row."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from ml_collections import ConfigDict

from jaxface import labels
from jaxface.augment import Framing
from jaxface.convert import from_reference, to_reference
from jaxface.errors import UserError
from jaxface.optimizers import make_optimizer
from jaxface.perceptual_loss import PerceptualLoss
from jaxface.state import TrainState
from jaxface.tasks import make_task
from jaxface.tasks.ipmnet import Draws, IpmNetTask, LossWeights
from jaxface.tasks.makeup import Faces, colours_loss
from jaxface.tasks.task import apart, together
from tests.golden import load, nhwc
from tests.smoke import experiment


class StandIn(nn.Module):
  """The golden's perceptual network: a preprocessing like the face network's and one convolution."""

  @nn.compact
  def __call__(self, image):
    levels = (image[..., ::-1] + 1) * 127.5 - jnp.array([103.939, 116.779, 123.680])[None, None, None]
    return nn.Conv(8, (5, 5), 4, padding=2, name='conv')(levels / 64)


def _faces(arrays, side):
  label = np.where(arrays[f'mask_{side}'][:, 0] > 0, labels.index('background'), labels.index('skin'))
  return Faces(nhwc(arrays[f'x_{side}']), jnp.asarray(label, jnp.uint8), nhwc(arrays[f'texture_{side}']))


def _of(state, prefix):
  return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


@pytest.fixture(scope='module')
def golden():
  _, tensors, arrays = load('ipmnet/losses_step')
  generator, variables = from_reference('ipmnet_generator', _of(tensors, 'gen.'))
  judges = {}
  for side in 'ab':
    discriminator, found = from_reference('ipmnet_discriminator', _of(tensors, f'dis_{side}.'))
    judges[side] = found['params']
  optimizer = make_optimizer(
    ConfigDict(
      {
        'name': 'adam',
        'options': {'b1': 0.5, 'b2': 0.999},
        'learning_rate': 2e-4,
        'warmup_steps': 0,
        'decay': 'constant',
        'clip_each': 0.0,
        'clip_global': 0.0,
        'weight_decay': 0.0,
        'l2': 1e-4,
        'l2_everywhere': True,
      }
    ),
    1000,
  )
  task = IpmNetTask(
    framing=Framing(64),
    image_size=64,
    generator=generator,
    discriminator=discriminator,
    optimizer=optimizer,
    perceptual=PerceptualLoss(StandIn(), jnp.abs),
  )
  conv = {'kernel': tensors['vgg.conv.weight'].transpose(2, 3, 1, 0), 'bias': tensors['vgg.conv.bias']}
  ones = jnp.ones(2)
  rows = {
    'a': _faces(arrays, 'a'),
    'b': _faces(arrays, 'b'),
    'draws': Draws(arrays['s_a'][..., 0, 0], arrays['s_b'][..., 0, 0], (ones,) * 4),
  }
  return arrays, task, variables['params'], judges, {'params': {'conv': conv}}, rows


def _assert_tensors(system, params, expected, prefix, compare):
  found = to_reference(system, {'params': params})
  wanted = {name.removeprefix(prefix): value for name, value in expected.items() if name.startswith(prefix)}
  assert wanted
  for name, value in wanted.items():
    compare(found[name], value, name)


def _close_gradient(found, expected, name):
  assert np.abs(found - expected).max() <= 2e-3 * np.abs(expected).max(), name


def _close_update(found, expected, name):
  # A first step of Adam is about the learning rate; where the gradient is nearly 0 its sign may differ.
  assert (np.abs(found - expected) < 5e-6).mean() >= 0.98, name


def test_the_generator_is_trained_as_in_the_public_code(golden):
  arrays, task, params, judges, frozen, rows = golden

  # Closed over, they would be constants, which the compiler works on for long.
  @jax.jit
  def step(params, opt_state, judges, frozen, rows):
    loss_fn = lambda params: task.generator_loss(params, judges, frozen, **rows)
    (loss, terms), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, opt_state = task.optimizer.update(gradient, opt_state, params)
    return loss, terms, gradient, jax.tree.map(jnp.add, params, updates), opt_state

  loss, terms, gradient, after, opt_state = step(params, jax.jit(task.optimizer.init)(params), judges, frozen, rows)
  both = lambda name: arrays[f'gen/{name}_a'] + arrays[f'gen/{name}_b']
  expected = {
    'adversarial': both('adv'),
    'reconstruction': 20 * both('recon_x'),
    'style': both('recon_s'),
    'content': both('recon_c'),
    'cycle': 10 * both('cycrecon_x'),
    'perceptual': 5 * both('vgg'),
    'background': both('back_x'),
    'foreground': 20 * both('fore_x'),
  }
  assert terms.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(terms[name], value, rtol=1e-4, err_msg=name)
  np.testing.assert_allclose(loss, arrays['gen/total'], rtol=1e-4)
  _assert_tensors('ipmnet_generator', gradient, arrays, 'gen_grad/gen.', _close_gradient)
  moved = jax.tree.map(lambda new, old: np.asarray(new) - old, after, params)
  _assert_tensors('ipmnet_generator', moved, arrays, 'gen_after_once/gen.', _close_update)
  for _ in range(2):
    loss, _, _, after, opt_state = step(after, opt_state, judges, frozen, rows)
  np.testing.assert_allclose(loss, arrays['gen/total_at_step3'], rtol=2e-3)


def test_the_discriminators_are_trained_as_in_the_public_code(golden):
  arrays, task, params, judges, _, rows = golden

  @jax.jit
  def step(judges, params, rows):
    loss, gradient = jax.value_and_grad(lambda judges: task.discriminators_loss(judges, params, **rows))(judges)
    return loss, gradient, task.optimizer.update(gradient, task.optimizer.init(judges), judges)[0]

  loss, gradient, moved = step(judges, params, rows)
  np.testing.assert_allclose(loss, arrays['dis_loss_a'] + arrays['dis_loss_b'], rtol=1e-4)
  for side in 'ab':
    _assert_tensors('ipmnet_discriminator', gradient[side], arrays, f'dis_grad/dis_{side}.', _close_gradient)
    _assert_tensors('ipmnet_discriminator', moved[side], arrays, f'dis_after/dis_{side}.', _close_update)


@pytest.fixture(scope='module')
def tiny():
  return make_task(experiment('ipmnet', 'code'))


def test_remat_reaches_the_generator(tiny):
  config = experiment('ipmnet', 'code')
  config.model.remat = True
  assert (tiny.generator.remat, make_task(config).generator.remat) == (False, True)


def test_levels_lead_from_the_own_makeup_to_the_references(golden):
  _, task, params, _, _, rows = golden
  state = TrainState(jnp.int32(0), {'generator': params}, None, None)

  @jax.jit
  def styles(state, rows, level):
    code = task.code(state, rows['a'])
    own = task.code(state, rows['b'])
    picture = task.wear(state, rows['b'], code, jnp.full(2, level))
    return picture, (1 - level) * own + level * code, own, code

  levels = (0.0, 0.25, 0.5, 0.75, 1.0)
  pictures, mixed, own, code = zip(*(styles(state, rows, level) for level in levels), strict=True)
  wear = jax.jit(task.wear)
  ends = [wear(state, rows['b'], c) for c in (own[0], code[0])]
  np.testing.assert_allclose(pictures[0], ends[0], atol=1e-5)
  np.testing.assert_allclose(pictures[-1], ends[1], atol=1e-5)
  distance = [np.linalg.norm(m - c, axis=-1).mean() for m, c in zip(mixed, code, strict=True)]
  assert all(a > b for a, b in itertools.pairwise(distance))
  assert np.abs(pictures[0] - pictures[-1]).max() > 1e-3


def test_faces_cross_over_in_the_other_domains_style(tiny):
  draws = Draws(100 + jnp.arange(3.0)[:, None], 200 + jnp.arange(3.0)[:, None], ())
  np.testing.assert_array_equal(tiny._crossing(draws)[:, 0], [200, 100, 201, 101, 202, 102])


def test_pairs_are_learnt_in_both_styles_and_by_what_differs(tiny):
  task = dataclasses.replace(tiny, paired=1.0, change=3.0, weights=LossWeights(*[0.0] * 8))
  params = task.init(jax.random.key(0)).params['generator']
  image, truth, reference = jax.random.uniform(jax.random.key(1), (3, 1, 32, 32, 3), minval=-1.0)
  label = jnp.full((1, 32, 32), labels.index('skin'))
  b = Faces(image, label, jnp.zeros((1, 32, 32, 1)), truth)
  draws = Draws(None, None, (jnp.ones(1),) * 4)
  loss, terms = task.generator_loss(params, None, None, a=b._replace(image=reference), b=b, draws=draws)
  style = lambda face: task.generator.apply({'params': params}, face, method='encode_style')
  worn, own = (task._generate(params, task._input(b, jnp.ones(1)), style(face)) for face in (reference, image))
  # Whole, and skin, which is all there is; the two pictures' mean.
  wanted = {
    'paired': jnp.abs(worn - truth).mean() + jnp.abs(own - image).mean(),
    'change': 3 * 2 * jnp.abs((worn - own) - (truth - image)).mean(),
  }
  assert set(terms) == set(wanted)
  for name, value in wanted.items():
    np.testing.assert_allclose(terms[name], value, rtol=1e-5)
  np.testing.assert_allclose(loss, sum(wanted.values()), rtol=1e-5)


@pytest.mark.parametrize('term', ['change', 'colours'])
def test_what_counts_beside_pairs_is_not_left_out_silently(tiny, term):
  with pytest.raises(UserError, match=r'count beside loss\.paired alone'):
    dataclasses.replace(tiny, **{term: 1.0})


def test_colours_need_room_in_the_style(tiny):
  with pytest.raises(UserError, match='style_dim=3 has no room for 9 colours'):
    dataclasses.replace(tiny, paired=1.0, colours=1.0, generator=tiny.generator.clone(style_dim=3))


def test_rows_draw_for_themselves(tiny):
  task = tiny
  keys = jax.vmap(jax.random.key)(jnp.arange(4))
  whole, part = task.draw(keys), task.draw(keys[2:3])
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[2:3], b), whole, part)
  weights = np.stack(whole.textures)
  assert weights.shape == (4, 4)
  assert ((weights >= 0.8) & (weights <= 1.2)).all()
  assert len(np.unique(weights)) == 16


def test_batches_go_together_and_come_apart():
  parts = [jnp.arange(6.0).reshape(3, 2) + 10 * i for i in range(3)]
  joined = together(*parts)
  assert joined.shape == (9, 2)
  np.testing.assert_array_equal(joined[:3, 0], [0, 10, 20])
  for a, b in zip(apart(joined, 3), parts, strict=True):
    np.testing.assert_array_equal(a, b)


def test_wrong_configurations_say_what_there_is():
  for key, value, told in (
    ('loss.gan', 'wgan', 'unknown loss.gan .*choose from lsgan, log'),
    ('loss.perceptual', 'resnet', 'unknown loss.perceptual .*choose from vggface2, random, none'),
    ('texture.recipe', 'mine', 'unknown texture.recipe .*choose from stored, published'),
    ('texture.low', 1.5, 'texture.low=1.5 and texture.high=1.2'),
    ('augment.crop_size', 64, 'augment.crop_size=64 must be .*at most model.image_size=32'),
  ):
    config = experiment('ipmnet', 'code')
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=told):
      make_task(config)


def test_the_configuration_reaches_the_losses_and_its_rates_are_the_generators():
  config = experiment('ipmnet', 'code')
  config.loss.gan, config.loss.penalty, config.loss.weights.cycle = 'log', 0.5, 7.0
  with config.optimizer.unlocked():
    config.optimizer.rates = ConfigDict({'decoder': 10.0})
  task = make_task(config)
  assert (task.gan_kind, task.penalty, task.weights.cycle) == ('log', 0.5, 7.0)
  steps = {}
  for network, part in (('generator', 'decoder'), ('discriminators', 'a')):
    optimizer, params = task.optimizers[network], {part: jnp.ones(1)}
    steps[network] = optimizer.update(params, optimizer.init(params), params)[0][part]
  np.testing.assert_allclose(steps['generator'], 10 * steps['discriminators'], rtol=1e-5)


def test_the_judges_come_first_and_either_update_has_draws_of_its_own(tiny, monkeypatch):
  seen, draws = [], []

  def update(loss_fn, params, opt_state, model_state, rows, optimizer, **_):
    draws.append(rows['draws'])
    loss_fn(params, None, {})
    return f'new {params}', f'new {opt_state}', None, {}

  monkeypatch.setattr('jaxface.tasks.ipmnet.update_network', update)
  monkeypatch.setattr(IpmNetTask, 'sides', lambda self, batch, key: (None, None))
  monkeypatch.setattr(IpmNetTask, 'discriminators_loss', lambda self, *networks, **_: seen.append(networks))
  monkeypatch.setattr(IpmNetTask, 'generator_loss', lambda self, *networks, **_: seen.append(networks) or (0.0, {}))
  networks = ('generator', 'discriminators')
  params, opt_state = ({name: kind + name for name in networks} for kind in ('', 'moments of '))
  state = TrainState(0, params, None, opt_state, frozen='frozen')
  state, _ = tiny.train_step(state, {'row': jnp.arange(3)}, jax.random.key(0))
  assert seen == [('discriminators', 'generator'), ('generator', 'new discriminators', 'frozen')]
  assert state.params == {name: f'new {name}' for name in networks}
  assert state.opt_state == {name: f'new moments of {name}' for name in networks}
  for first, second in zip(jax.tree.leaves(draws[0]), jax.tree.leaves(draws[1]), strict=True):
    assert not np.isclose(first, second).any()


def test_a_level_mixes_the_codes(tiny, monkeypatch):
  monkeypatch.setattr(IpmNetTask, 'code', lambda self, state, faces: faces.image)
  monkeypatch.setattr(IpmNetTask, '_input', lambda self, faces, weight: None)
  monkeypatch.setattr(IpmNetTask, '_generate', lambda self, params, inputs, style: style)
  state, own, other = TrainState(0, {'generator': None}, None, None), jnp.full((2, 3), 4.0), jnp.full((2, 3), 8.0)
  found = tiny.wear(state, Faces(own, None), other, jnp.array([0.25, 1.0]))
  np.testing.assert_allclose(found, [[5.0] * 3, [8.0] * 3])
  np.testing.assert_array_equal(tiny.wear(state, Faces(own, None), other), other)


def test_colours_are_those_of_each_style_and_its_face(tiny):
  task = dataclasses.replace(
    tiny, paired=1.0, colours=3.0, generator=tiny.generator.clone(style_dim=9), weights=LossWeights(*[0.0] * 8)
  )
  image, reference = jax.random.uniform(jax.random.key(1), (2, 2, 32, 32, 3), minval=-1.0)
  label = jnp.full((2, 32, 32), labels.index('skin'))
  b = Faces(image, label, jnp.zeros((2, 32, 32, 1)), image)
  a = Faces(reference, label.at[:, 20:24, 10:20].set(labels.index('u_lip')))  # The only ones with lips.
  params = jax.jit(task.init)(jax.random.key(0)).params['generator']

  @jax.jit
  def both(params):
    _, terms = task.generator_loss(params, None, None, a=a, b=b, draws=Draws(None, None, (jnp.ones(2),) * 4))
    sides = [(task.code(TrainState(0, {'generator': params}, None, None), side), side) for side in (a, b)]
    return terms['colours'], sum(colours_loss(styles, side) for styles, side in sides) / 2

  found, mean = both(params)
  assert mean > 0.01
  np.testing.assert_allclose(found, 3 * mean, rtol=1e-4)
