"""VGG's taps by name; its numbers are held by LPIPS's goldens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.models.vgg import VGG19, Vgg


def _tiny(*taps):
  return Vgg(taps, VGG19, widths=(2, 3, 4, 5, 6))


def test_taps_have_their_places_and_nothing_behind_the_last_is_made():
  module = _tiny('relu4_1', 'conv1_2', 'relu1_2')
  image = jax.random.normal(jax.random.key(0), (1, 16, 24, 3))
  variables = jax.jit(module.init)(jax.random.key(1), image)
  assert len(variables['params']) == 2 + 2 + 4 + 1
  deep, before, after = jax.jit(module.apply)(variables, image)
  assert deep.shape == (1, 2, 3, 5)
  assert before.shape == after.shape == (1, 16, 24, 2)
  np.testing.assert_array_equal(after, jnp.maximum(before, 0))
  assert (before < 0).any()


def test_unknown_taps_are_refused():
  for taps in ((), ('relu3_5',), ('relu1_1', 'pool1')):
    with pytest.raises(UserError, match=r'name one or more of conv1_1, relu1_1 \.\.\. relu5_4'):
      _tiny(*taps)
