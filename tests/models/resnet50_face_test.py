"""The face ResNet-50 against stored numbers of the public code, and what it promises beside them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.convert import from_reference
from jaxface.errors import UserError
from jaxface.models.resnet50_face import FaceResNet50, preprocess, random_variables
from tests.golden import load

SMALL = FaceResNet50(widths=(2, 2, 2, 2), blocks=(1, 1, 1, 1))


@functools.partial(jax.jit, static_argnums=0)
def features(module, variables, image):
  return module.apply(variables, image)


def test_features_and_layers_match_the_golden():
  # Four seconds on two slow cores, half of them to draw and fold 23 million parameters.
  _, state, arrays = load('resnet50_face/features_224')
  module, variables = from_reference('resnet50_face', state)
  assert module == FaceResNet50()
  image = arrays['image'].transpose(0, 2, 3, 1)
  other = -np.roll(image, 5, axis=2)

  @jax.jit
  def run(variables, images):
    return module.apply(variables, images), module.apply(variables, images, method='layers')

  found, layers = run(variables, np.concatenate([image, other]))
  layers = [layer[:1].transpose(0, 3, 1, 2) for layer in layers]
  assert found.shape == (2, 2048)
  pairs = {
    'preprocessed': preprocess(image).transpose(0, 3, 1, 2)[..., ::16, ::16],
    'stem': layers[0][:, ::8, ::8, ::8],
    'layer1': layers[1][:, ::32, ::8, ::8],
    'layer4': layers[4][:, ::64],
    'features': found[:1],
  }
  for name, array in pairs.items():
    # The stored tolerance is 1e-3 of the largest.
    np.testing.assert_allclose(array, arrays[name], rtol=0, atol=1e-5 * np.abs(arrays[name]).max(), err_msg=name)
  np.testing.assert_allclose(jnp.abs(found[0] - found[1]).mean(), arrays['loss'], rtol=1e-5)


@pytest.fixture(scope='module')
def picture():
  # Three windows of 7x7 fit into 9x7 pixels of the last layer.
  return np.random.default_rng(0).uniform(-1, 1, (2, 260, 200, 3)).astype(np.float32)


def test_features_are_ordered_by_channel_row_and_column(picture):
  variables = random_variables(0, SMALL)
  last = jax.jit(lambda v, x: SMALL.apply(v, x, method='layers')[-1])(variables, picture)
  assert last.shape == (2, 9, 7, 8)
  found = features(SMALL, variables, picture).reshape(2, 8, 3, 1)
  for row in range(3):
    np.testing.assert_allclose(found[:, :, row, 0], last[:, row : row + 7].mean((1, 2)), rtol=1e-5)
  whole = features(SMALL.clone(pool='global'), variables, picture)
  np.testing.assert_allclose(whole, last.mean((1, 2)), rtol=1e-5)


def test_bfloat16_is_close_and_gives_float32(picture):
  variables = random_variables(0, SMALL)
  expected = features(SMALL, variables, picture)
  found = features(SMALL.clone(dtype=jnp.bfloat16), variables, picture)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, expected, atol=0.03 * float(jnp.abs(expected).max()))


def _products(module, platform):
  """How each convolution and matrix product of the network is asked to multiply."""
  image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
  # Tests ask for the highest everywhere.
  with jax.default_matmul_precision('default'):
    traced = jax.jit(module.apply).trace(random_variables(0, module), image)
    program = traced.lower(lowering_platforms=(platform,)).as_text()
  lines = [line for line in program.splitlines() if 'stablehlo.convolution' in line or 'dot_general' in line]
  return [line.count('HIGHEST') == 2 for line in lines]


def test_accelerators_multiply_as_they_are_asked_to():
  # Two 1x1 convolutions and a 3x3 one in a block, a shortcut in each first block, and the stem.
  module = SMALL.clone(pool='global', blocks=(2, 1, 1, 1))
  for platform in ('cuda', 'tpu'):
    exact = _products(module.clone(precision='highest'), platform)
    assert len(exact) == 5 * 3 + 4 + 1
    assert all(exact)
    assert not any(_products(module, platform))


def test_precision_changes_nothing_on_a_cpu(picture):
  variables = random_variables(0, SMALL)
  exact = features(SMALL.clone(precision='highest'), variables, picture)
  np.testing.assert_array_equal(exact, features(SMALL, variables, picture))


def test_small_pictures_need_the_global_pool():
  variables = random_variables(0, SMALL)
  image = jax.ShapeDtypeStruct((1, 194, 256, 3), np.float32)
  with pytest.raises(UserError, match='pictures of 256x194: a 7x7 pool needs sides of 195; pool="global" needs none'):
    jax.eval_shape(SMALL.apply, variables, image)
  shape = lambda module, *size: jax.eval_shape(module.apply, variables, jax.ShapeDtypeStruct((1, *size, 3), 'f4')).shape
  assert shape(SMALL, 195, 195) == shape(SMALL, 226, 226) == (1, 8)
  assert shape(SMALL, 256, 256) == (1, 4 * 8)
  assert shape(SMALL.clone(pool='global'), 16, 24) == (1, 8)


def test_unknown_names_say_what_there_is():
  image = jnp.zeros((1, 200, 200, 3))
  with pytest.raises(UserError, match="unknown means 'coco'; choose from imagenet, vggface2"):
    preprocess(image, 'coco')
  with pytest.raises(UserError, match="unknown pool 'mean'; choose from window, global"):
    SMALL.clone(pool='mean').apply({}, image)


def test_preprocessing_by_the_means_of_vggface2():
  image = np.array([1, 0, -1], np.float32)[None, None, None]  # Red 255, green 127.5, blue 0.
  expected = [0 - 91.4953, 127.5 - 103.8827, 255 - 131.0912]
  np.testing.assert_allclose(preprocess(image, 'vggface2')[0, 0, 0], expected, rtol=1e-6)


def test_random_weights_have_hes_deviation_by_fan_out():
  params = random_variables(3)['params']
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 23_508_032 - 53_120 // 2
  for name, fan_out in (('conv1', 49 * 64), ('layer3_2_conv2', 9 * 256), ('layer4_0_downsample', 2048)):
    np.testing.assert_allclose(params[name]['kernel'].std(), np.sqrt(2 / fan_out), rtol=0.02)
    assert not params[name]['bias'].any()
  again = random_variables(3)['params']['conv1']['kernel']
  np.testing.assert_array_equal(again, params['conv1']['kernel'])
