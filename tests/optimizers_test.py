import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from jaxface.errors import UserError
from jaxface.optimizers import clip_each_by_norm, learning_rate_schedule, make_optimizer, scale_by_keras_adam
from tests.golden import load


def test_keras_adam_follows_its_formula():
  b1, b2, eps = 0.9, 0.999, 1e-7
  gradients = [np.array([1e-6, -3e-6, 0.5], np.float32), np.array([2e-6, 1e-7, -0.1], np.float32)]
  transform = scale_by_keras_adam(b1, b2, eps)
  state = transform.init(jnp.zeros(3))
  m, v = np.zeros(3), np.zeros(3)
  for t, gradient in enumerate(gradients, start=1):
    update, state = transform.update(jnp.asarray(gradient), state)
    m = b1 * m + (1 - b1) * gradient
    v = b2 * v + (1 - b2) * np.square(gradient.astype(np.float64))
    expected = np.sqrt(1 - b2**t) / (1 - b1**t) * m / (np.sqrt(v) + eps)
    np.testing.assert_allclose(update, expected, rtol=2e-4)


def test_keras_epsilon_is_larger_than_optax_where_gradients_are_tiny():
  gradient = jnp.full(4, 1.3e-6)
  keras, _ = scale_by_keras_adam().update(gradient, scale_by_keras_adam().init(gradient))
  plain, _ = optax.scale_by_adam(eps=1e-7).update(gradient, optax.scale_by_adam(eps=1e-7).init(gradient))
  # The figures of a 590k-entry kernel under clipnorm 1e-3, in units of the learning rate.
  np.testing.assert_allclose(keras, 0.29, atol=0.01)
  np.testing.assert_allclose(plain, 0.93, atol=0.01)


def test_clip_each_by_norm_is_per_variable():
  gradients = {'large': jnp.array([3.0, 4.0]), 'small': jnp.array([1e-5, 0.0]), 'zero': jnp.zeros(2)}
  clipped, _ = clip_each_by_norm(1e-3).update(gradients, optax.EmptyState())
  np.testing.assert_allclose(clipped['large'], [6e-4, 8e-4], rtol=1e-6)
  np.testing.assert_array_equal(clipped['small'], gradients['small'])
  np.testing.assert_array_equal(clipped['zero'], 0)


def test_schedule_warms_up_and_decays():
  schedule = learning_rate_schedule(2.0, total_steps=110, warmup_steps=10, decay='cosine')
  np.testing.assert_allclose(
    [schedule(0), schedule(5), schedule(10), schedule(60), schedule(110)], [0, 1, 2, 1, 0], atol=1e-6
  )
  assert learning_rate_schedule(2.0, total_steps=10)(7) == 2.0


def _config(**changes):
  default = {
    'name': 'adam', 'options': {}, 'learning_rate': 0.1, 'warmup_steps': 0, 'decay': 'constant',
    'clip_each': 0.0, 'clip_global': 0.0, 'weight_decay': 0.0,
  }  # fmt: skip
  return ConfigDict({**default, **changes})


def test_weight_decay_spares_biases():
  params = {'kernel': jnp.ones((2, 2)), 'bias': jnp.ones(2)}
  optimizer = make_optimizer(_config(weight_decay=0.5), total_steps=1)
  updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
  np.testing.assert_allclose(updates['kernel'], -0.05)
  np.testing.assert_array_equal(updates['bias'], 0)


@pytest.mark.parametrize(('key', 'value'), [('name', 'adamm'), ('decay', 'cos')])
def test_unknown_choices_say_what_there_is(key, value):
  with pytest.raises(UserError, match=f'{value}.*choose from'):
    make_optimizer(_config(**{key: value}), total_steps=1)


@pytest.mark.parametrize('key', ['learning_rate', 'warmup_steps', 'clip_each', 'clip_global', 'weight_decay', 'l2'])
def test_negative_numbers_are_refused(key):
  with pytest.raises(UserError, match=f'optimizer.{key}=-1'):
    make_optimizer(_config(**{key: -1}), total_steps=1)


def test_adam_with_l2_is_pytorchs():
  _, _, arrays = load('ipmnet/adam_l2')
  config = ConfigDict(
    {
      'name': 'adam',
      'options': {'b1': 0.5, 'b2': 0.999},
      'learning_rate': 2e-4,
      'warmup_steps': 0,
      'decay': 'halve',
      'halve_steps': 10,
      'clip_each': 0.0,
      'clip_global': 0.0,
      'weight_decay': 0.0,
      'l2': 1e-4,
      'l2_everywhere': True,
    }
  )
  optimizer = make_optimizer(config, total_steps=100)
  params = {'weight': jnp.asarray(arrays['start'])}
  state = optimizer.init(params)
  for gradient, expected in zip(arrays['gradients'], arrays['after'], strict=True):
    updates, state = optimizer.update({'weight': jnp.asarray(gradient)}, state, params)
    params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params['weight'], expected, rtol=0, atol=2e-7)


def test_the_halving_rate_is_pytorchs_with_the_scheduler_first():
  _, _, arrays = load('ipmnet/adam_l2')
  schedule = learning_rate_schedule(2e-4, total_steps=100, decay='halve', halve_steps=10)
  np.testing.assert_allclose([1e4 * float(schedule(i)) for i in range(25)], arrays['lr_by_iteration'], rtol=1e-6)
  with pytest.raises(UserError, match="decay='halve' needs optimizer.halve_steps"):
    learning_rate_schedule(2e-4, total_steps=100, decay='halve')


def _updates(optimizer, params, gradients):
  """What follows from one gradient after another at the same parameters."""
  state, updates = optimizer.init(params), []
  for gradient in gradients:
    update, state = optimizer.update(gradient, state, params)
    updates.append(update)
  return updates


@pytest.mark.parametrize(
  ('name', 'options', 'second'), [('sgd', {}, 1), ('momentum', {}, 1.9), ('sgd', {'momentum': 0.5}, 1.5)]
)
def test_momentum_is_what_the_name_or_the_options_say(name, options, second):
  one = {'bias': jnp.ones(2)}
  first, then = _updates(make_optimizer(_config(name=name, options=options), total_steps=9), one, [one, one])
  np.testing.assert_allclose(first['bias'], -0.1, rtol=1e-6)
  np.testing.assert_allclose(then['bias'], -0.1 * second, rtol=1e-6)


def test_gradients_are_clipped_together_then_decayed_then_scaled_by_part():
  params = {part: {'kernel': jnp.full((2, 2), 2.0), 'bias': jnp.full(2, 2.0)} for part in ('body', 'head')}
  gradient = jax.tree.map(lambda leaf: jnp.full_like(leaf, 3.0), params)
  config = _config(name='sgd', clip_global=1.0, l2=0.25, rates={'head': 10.0, 'body/bias': 2.0})
  (found,) = _updates(make_optimizer(config, total_steps=9), params, [gradient])
  clipped = 1 / np.sqrt(12)  # All twelve numbers are alike, and their norm becomes 1.
  for part, name, factor, decay in (
    ('body', 'kernel', 1, 0.5), ('body', 'bias', 2, 0), ('head', 'kernel', 10, 0.5), ('head', 'bias', 10, 0),
  ):  # fmt: skip
    np.testing.assert_allclose(found[part][name], -0.1 * factor * (clipped + decay), rtol=1e-5, err_msg=part + name)


@pytest.mark.parametrize('key', ['l2', 'weight_decay'])
def test_decay_everywhere_spares_nothing(key):
  params = {'kernel': jnp.ones((2, 2)), 'bias': jnp.ones(2)}
  config = _config(name='sgd', **{key: 0.5, f'{key}_everywhere': True})
  (found,) = _updates(make_optimizer(config, total_steps=9), params, [jax.tree.map(jnp.zeros_like, params)])
  jax.tree.map(lambda leaf: np.testing.assert_allclose(leaf, -0.05, rtol=1e-6), found)


@pytest.mark.parametrize(('decay', 'half'), [('linear', 0.5), ('poly', 0.5**0.9), ('cosine', 0.5), ('constant', 1)])
def test_rates_by_the_name_of_the_decay(decay, half):
  """By the updates that `make_optimizer` makes, so that every key reaches the schedule."""
  config = _config(name='sgd', decay=decay, warmup_steps=2, warmup_from=0.001)
  one = {'bias': jnp.ones(1)}
  rates = -np.ravel([update['bias'] for update in _updates(make_optimizer(config, total_steps=8), one, [one] * 9)])
  np.testing.assert_allclose(rates[[0, 1, 2, 5]], [0.001, 0.01, 0.1, 0.1 * half], rtol=1e-4)
  np.testing.assert_allclose(rates[8], 0.1 if decay == 'constant' else 0, atol=1e-7)


def test_every_variable_is_clipped_where_the_configuration_says_so():
  params = {'kernel': jnp.ones((2, 2)), 'bias': jnp.ones(2)}
  gradient = {'kernel': jnp.full((2, 2), 3.0), 'bias': jnp.array([0.0, 0.5])}
  (found,) = _updates(make_optimizer(_config(name='sgd', clip_each=1.0), total_steps=9), params, [gradient])
  np.testing.assert_allclose(found['kernel'], -0.05, rtol=1e-6)  # Of norm 6, and then 1.
  np.testing.assert_allclose(found['bias'], [0, -0.05], rtol=1e-6)  # Of norm 0.5, which is less.


def test_a_part_s_rate_is_that_of_its_decay_too():
  params = {'head': {'kernel': jnp.full((2, 2), 2.0)}}
  config = _config(name='sgd', weight_decay=0.25, rates={'head': 10.0})
  (found,) = _updates(make_optimizer(config, total_steps=9), params, [jax.tree.map(jnp.zeros_like, params)])
  np.testing.assert_allclose(found['head']['kernel'], -0.1 * 10 * 0.5, rtol=1e-6)
