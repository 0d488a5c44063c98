"""VGG-19's activations against stored numbers of the public code."""

import jax
import numpy as np

from jaxface import convert
from tests.golden import load


def test_taps_match_the_golden():
  about, state, arrays = load('beautygan/vgg19')
  strides = {'relu1_2': (4, 16), 'relu2_2': (2, 16), 'relu3_4': (1, 16), 'relu4_1': (1, 4), 'relu5_4': (1, 4)}
  module, variables = convert.from_reference('vgg19', state, taps=tuple(strides))
  found = jax.jit(module.apply)(variables, arrays['x'].transpose(0, 2, 3, 1))
  for (tap, (places, channels)), activation in zip(strides.items(), found, strict=True):
    ours = activation[:, ::places, ::places, ::channels].transpose(0, 3, 1, 2)
    expected = arrays[f'r{tap[4]}{tap[6]}']
    tolerance = about['tolerance']
    np.testing.assert_allclose(ours, expected, rtol=tolerance['rel'], atol=tolerance['abs'], err_msg=tap)
