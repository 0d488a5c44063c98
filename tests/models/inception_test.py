"""FID's Inception against stored features and activations of the reference."""

import functools

import jax
import numpy as np
import pytest

from jaxface.convert import inception
from tests.golden import load


@pytest.fixture(scope='module')
def golden():
  return load('inception_fid/pool3')


def test_features_and_blocks_match_the_golden(golden):
  _, state, arrays = golden
  module, variables = inception.from_reference(state)

  @functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
  def extract(variables, image):
    return module.apply(variables, image), module.apply(variables, image, method='blocks')

  # The second picture tells nothing new, and takes a second.
  features, blocks = extract(variables, arrays['image'][:1])
  assert features.shape == (1, 2048)
  assert [block.shape[1:] for block in blocks] == [(73, 73, 64), (35, 35, 192), (17, 17, 768), (8, 8, 2048)]
  # The stored tolerance is 1e-4.
  np.testing.assert_allclose(features, arrays['pool3'][:1], rtol=0, atol=1e-5)
  strides = {'block0': (9, 16), 'block1': (6, 24), 'block2': (4, 48)}
  for block, (name, (places, channels)) in zip(blocks, strides.items(), strict=False):
    found = block[:, ::places, ::places, ::channels].transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found, arrays[name][:1], rtol=0, atol=2e-5)
  np.testing.assert_allclose([b.mean() for b in blocks], arrays['block_means'][0], rtol=0, atol=1e-5)
