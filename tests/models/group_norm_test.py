"""Group normalisation and its gradient, which is written by hand, against the formula differentiated as it stands."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxface.models.group_norm import group_norm

_X = np.random.default_rng(0).standard_normal((2, 4, 6, 8)).astype(np.float32) * (1, 2, 0.1, 0.1, 3, 1, 1, 1)
_X = (_X + np.array([0, 1, 5, 5, -2, 0, 0, 0])).astype(np.float32)


def _maps(*shape):
  random = np.random.default_rng(1)
  return tuple(jnp.asarray(random.standard_normal(shape), jnp.float32) for _ in range(2))


def _gradients(function):
  return jax.jit(jax.grad(function, argnums=(0, 1, 2)))


def _plain(x, scale, shift, offset):
  grouped = x.reshape(*x.shape[:3], 4, 2)
  mean, var = grouped.mean((1, 2, 4), keepdims=True), grouped.var((1, 2, 4), keepdims=True)
  return ((grouped - mean) / jnp.sqrt(var + 1e-5)).reshape(x.shape) * (offset + scale) + shift


def test_it_is_flax_group_norm():
  scale, shift = _maps(1, 1, 1, 8)
  flax = nn.GroupNorm(num_groups=4, epsilon=1e-5, use_fast_variance=False)
  expected = jax.jit(flax.apply)({'params': {'scale': scale.ravel(), 'bias': shift.ravel()}}, _X)
  ours = jax.jit(functools.partial(group_norm, groups=4))
  np.testing.assert_allclose(ours(_X, scale, shift), expected, atol=2e-5)


@pytest.mark.parametrize('shape', [(1, 1, 1, 8), (2, 4, 6, 8), (1, 4, 6, 8)])
@pytest.mark.parametrize('offset', [0.0, 1.0])
def test_gradients_are_those_of_the_formula(shape, offset):
  weight = jnp.asarray(np.random.default_rng(2).standard_normal(_X.shape), jnp.float32)
  ours = lambda *given: (group_norm(*given, groups=4, offset=offset) * weight).sum()
  plain = lambda *given: (_plain(*given, offset) * weight).sum()
  given = (jnp.asarray(_X), *_maps(*shape))
  for own, expected in zip(*(_gradients(f)(*given) for f in (ours, plain)), strict=True):
    np.testing.assert_allclose(own, expected, rtol=1e-4, atol=2e-4)


def test_a_gradient_of_a_gradient():
  given = (jnp.asarray(_X), *_maps(1, 1, 1, 8))

  def steepness(norm):
    inner = jax.grad(lambda x, scale, shift: jnp.tanh(norm(x, scale, shift)).sum())
    return jax.jit(jax.grad(lambda scale: jnp.square(inner(given[0], scale, given[2])).sum()))(given[1])

  ours = steepness(lambda *each: group_norm(*each, groups=4))
  np.testing.assert_allclose(ours, steepness(lambda *each: _plain(*each, 0.0)), rtol=1e-3, atol=1e-3)


def test_backward_keeps_nothing_of_the_inputs_size_but_the_input():
  x, (scale, shift) = jnp.asarray(_X, jnp.bfloat16), _maps(1, 1, 1, 8)
  _, pull_back = jax.vjp(lambda *given: group_norm(*given, groups=4, dtype=jnp.bfloat16), x, scale, shift)
  kept = [leaf for leaf in jax.tree.leaves(pull_back) if leaf.size == x.size]
  assert [leaf.dtype for leaf in kept] == [jnp.bfloat16]


def test_the_unbiased_form_and_its_gradients_are_those_of_the_formula():
  def plain(x, scale, shift):
    grouped = x.reshape(*x.shape[:3], 2, 4)
    std = grouped.std((1, 2, 4), keepdims=True, ddof=1)
    return ((grouped - grouped.mean((1, 2, 4), keepdims=True)) / (std + 0.1)).reshape(x.shape) * scale + shift

  ours = functools.partial(group_norm, groups=2, epsilon=0.1, unbiased=True)
  given = (jnp.asarray(_X), *_maps(1, 1, 1, 8))
  np.testing.assert_allclose(jax.jit(ours)(*given), jax.jit(plain)(*given), rtol=1e-4, atol=1e-5)
  found, expected = (_gradients(lambda *g, f=f: jnp.tanh(f(*g)).sum())(*given) for f in (ours, plain))
  for own, wanted in zip(found, expected, strict=True):
    np.testing.assert_allclose(own, wanted, rtol=1e-4, atol=2e-4)
