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
