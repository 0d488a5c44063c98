"""Keras's layer semantics from their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxface.aot.hlo import by_kind, collectives
from jaxface.layers import BatchNorm, BatchNormElu, Conv3x3, ConvTranspose3x3
from jaxface.meshes import BATCH_AXES, make_mesh

# Two of the channels hardly vary about a mean far from 0, where a one-pass variance would fail.
X = np.random.default_rng(0).standard_normal((8, 3, 2, 5)).astype(np.float32) * (1, 2, 1e-2, 1e-2, 0.5)
X = (X + np.array([0, -1, 3, -5, 0.5])).astype(np.float32)


def _variables(norm, x=X):
  rng = np.random.default_rng(1)
  variables = norm.init(jax.random.key(0), x, train=True)

  def positive(leaf):
    return np.asarray(leaf + 0.3 * np.abs(rng.standard_normal(leaf.shape)), np.float32)

  return jax.tree.map(positive, variables)


def _train(norm, variables, x, **options):
  y, updated = norm.apply(variables, x, train=True, mutable=['batch_stats'], **options)
  return y, updated['batch_stats']


def test_batch_norm_is_keras_batch_norm():
  norm = BatchNorm()
  variables = _variables(norm)
  params, stats = variables['params'], variables['batch_stats']
  x = X.astype(np.float64)
  mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))

  y, new = _train(norm, variables, X)
  # float32 knows a mean of -5 to 3e-7, and normalising multiplies that by 30.
  np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-3) * params['scale'] + params['bias'], atol=1e-4)
  np.testing.assert_allclose(new['mean'], 0.99 * stats['mean'] + 0.01 * mean, rtol=1e-6)
  # n = 48 values per channel: 48/47 of the biased variance goes into the moving one.
  np.testing.assert_allclose(new['var'], 0.99 * stats['var'] + 0.01 * var * 48 / 47, rtol=1e-6)

  y = norm.apply(variables, X, train=False)
  expected = (x - stats['mean']) / np.sqrt(stats['var'] + 1e-3) * params['scale'] + params['bias']
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_batch_norm_options_are_flax_batch_norm():
  ours = BatchNorm(momentum=0.9, epsilon=1e-5, biased_moving_variance=True)
  flax = nn.BatchNorm(momentum=0.9, epsilon=1e-5, use_running_average=False, use_fast_variance=False)
  variables = _variables(ours)
  y, new = _train(ours, variables, X)
  expected, updated = flax.apply(variables, X, mutable=['batch_stats'])
  np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
  for name in ('mean', 'var'):
    np.testing.assert_allclose(new[name], updated['batch_stats'][name], rtol=1e-5)


def test_one_value_per_channel_keeps_statistics_finite():
  norm = BatchNorm()
  y, new = _train(norm, _variables(norm, X[:1, 0, 0]), X[:1, 0, 0])
  assert np.isfinite(y).all()
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(new))


def test_a_shift_cancels_in_training_and_counts_in_evaluation():
  norm, shift = BatchNorm(), np.arange(5, dtype=np.float32)
  variables = _variables(norm)
  y, new = _train(norm, variables, X, shift=shift)
  expected, moved = _train(norm, variables, X + shift)
  np.testing.assert_allclose(y, expected, atol=2e-4)
  np.testing.assert_allclose(new['mean'], moved['mean'], rtol=1e-5)
  np.testing.assert_allclose(
    norm.apply(variables, X, train=False, shift=shift), norm.apply(variables, X + shift, train=False), atol=1e-5
  )


@pytest.mark.parametrize('train', [True, False])
def test_batch_norm_elu_is_batch_norm_then_elu_in_value_and_derivatives(train):
  variables = _variables(BatchNorm())
  stats = variables['batch_stats']
  weights = np.random.default_rng(2).standard_normal(X.shape).astype(np.float32)

  def fused(params, x):
    return BatchNormElu().apply({'params': params, 'batch_stats': stats}, x, train=train, mutable=['batch_stats'])[0]

  def separate(params, x):
    variables = {'params': params, 'batch_stats': stats}
    return nn.elu(BatchNorm().apply(variables, x, train=train, mutable=['batch_stats'])[0])

  def gradient(function):
    return jax.grad(lambda params, x: jnp.sum(weights * jnp.sin(function(params, x))), (0, 1))

  def second(function):
    return jax.grad(lambda *a: sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(gradient(function)(*a))), (0, 1))

  for derive in (lambda f: f, gradient, second):
    actual, expected = (jax.jit(derive(f))(variables['params'], X) for f in (fused, separate))
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
      np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(b).max())


@pytest.mark.parametrize('kind', [BatchNorm, BatchNormElu])
def test_replicas_share_statistics_and_gradients(kind):
  """Four `pmap` replicas, and four devices in an engine's step, compute what one device computes."""
  variables = _variables(kind())
  weights = np.random.default_rng(2).standard_normal(X.shape).astype(np.float32)

  def step(norm, params, x, weights):
    def loss(params, x):
      y, new = _train(norm, {'params': params, 'batch_stats': variables['batch_stats']}, x)
      return jnp.sum(weights * jnp.sin(y)), new

    gradients, new = jax.grad(loss, (0, 1), has_aux=True)(params, x)
    return *gradients, new

  dparams, dx, new = jax.jit(lambda *a: step(kind(), *a))(variables['params'], X, weights)
  split = lambda t: t.reshape(4, 2, *t.shape[1:])
  replicas = jax.pmap(lambda *a: step(kind(axis_name='replicas'), *a), 'replicas', in_axes=(None, 0, 0))(
    variables['params'], split(X), split(weights)
  )
  mesh = make_mesh(2, jax.devices()[:4])

  def in_engine(*arguments):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return step(kind(), *arguments)

  rows = jax.device_put((X, weights), NamedSharding(mesh, P(BATCH_AXES)))
  program = jax.jit(in_engine).lower(variables['params'], *rows).compile()
  # Both statistics at once, and all sums of the gradient.
  exchanges = by_kind(collectives(program.as_text()))
  assert {kind: each['count'] for kind, each in exchanges.items()} == {'all-gather': 1, 'all-reduce': 1}
  assert exchanges['all-gather']['bytes'] == 4 * 2 * 5 * 4
  replicas = (jax.tree.map(lambda t: t.sum(0), replicas[0]), replicas[1].reshape(X.shape), replicas[2])
  for other in (replicas, program(variables['params'], *rows)):
    for a, b in zip(jax.tree.leaves(other), jax.tree.leaves((dparams, dx, new)), strict=True):
      np.testing.assert_allclose(a, np.broadcast_to(b, a.shape), rtol=1e-3, atol=1e-3 * np.abs(b).max())


def test_bfloat16_keeps_float32_statistics():
  norm = BatchNormElu(dtype=jnp.bfloat16)
  y, new = _train(norm, _variables(norm), jnp.asarray(X, jnp.bfloat16))
  assert y.dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype('float32')}


@pytest.mark.parametrize(
  ('layer', 'size'), [(Conv3x3(16), 8), (ConvTranspose3x3(16), 16), (ConvTranspose3x3(16, odd=True), 17)]
)
def test_convolutions_have_glorot_kernels_and_a_bias(layer, size):
  x = np.zeros((2, 8, 8, 48), np.float32)
  variables = layer.init(jax.random.key(0), x)
  kernel = np.asarray(variables['params']['kernel'])
  limit = np.sqrt(6 / (9 * 16 + 9 * 48))
  assert np.abs(kernel).max() == pytest.approx(limit, rel=0.01)
  assert kernel.std() == pytest.approx(limit / np.sqrt(3), rel=0.05)
  variables['params']['bias'] += jnp.arange(16.0)
  y = layer.apply(variables, x)
  assert y.shape == (2, size, size, 16)
  np.testing.assert_array_equal(y[1, 2, 3], np.arange(16))
