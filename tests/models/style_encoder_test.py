"""SCA-DM's style encoder against stored numbers of its PyTorch code, and its parts against their definitions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from jaxface.aot import hlo
from jaxface.convert import style_encoder as convert
from jaxface.errors import UserError
from jaxface.meshes import BATCH_AXES, make_mesh
from jaxface.models import style_encoder
from jaxface.models.style_encoder import StyleEncoder, Tokens, grouped_conv3x3
from tests.golden import load

SMALL = StyleEncoder(num_classes=3, width=2, token_dim=4, num_downsamples=2)


@pytest.fixture(scope='module')
def small():
  """Variables for `SMALL` with biases, a picture that is not square, and its label map."""
  rng = np.random.default_rng(0)
  image = rng.uniform(-1, 1, (2, 8, 12, 3)).astype(np.float32)
  label = rng.integers(0, 3, (2, 8, 12))
  variables = jax.jit(SMALL.init)(jax.random.key(0), image, label)
  return jax.tree.map(lambda t: t + 0.1 * rng.standard_normal(t.shape, np.float32), variables), image, label


@functools.cache
def _apply(module):
  return jax.jit(module.apply)


def test_tokens_and_features_match_the_golden():
  about, state, arrays = load('scadm/style_encoder')
  module, variables = convert.from_reference(state)
  config = about['config']['module']
  assert module == StyleEncoder(
    num_classes=config['num_mask_channels'],
    width=config['num_feat'],
    token_dim=config['output_dim'],
    num_downsamples=config['num_downsample'],
  )
  assert module.num_tokens_channels == arrays['style'].shape[-1]
  image = arrays['x'].transpose(0, 2, 3, 1)
  run = jax.jit(functools.partial(module.apply, capture_intermediates=True))
  style, captured = run(variables, image, arrays['labels'])
  features = {name: layer['__call__'][0] for name, layer in captured['intermediates'].items() if name != '__call__'}
  layers = ['stem', 'down0', 'down1', 'down2', 'down3', 'up0', 'up1', 'up2']
  ours = {
    'style': style,
    'style_zero_image': run(variables, np.zeros_like(image), arrays['labels'])[0],
    'layer_stats': [(features[name].mean(), features[name].std(ddof=1)) for name in layers],
    'dec_first': features['up0'].transpose(0, 3, 1, 2),
    'dec_second': features['up1'].transpose(0, 3, 1, 2),
  }
  tolerance = about['tolerance']
  close = functools.partial(np.testing.assert_allclose, rtol=tolerance['relative'])
  for name, value in ours.items():
    close(value, arrays[name], atol=tolerance['absolute'], err_msg=name)
  # The second picture has no pixel of class 4.
  absent = np.concatenate([np.tanh(state[f'out.out_{i}.0.bias'][-8:]) for i in range(3)])
  close(style[1, 4], absent, atol=tolerance['absolute'])

  back = convert.to_reference(variables)
  assert back.keys() == state.keys()
  for name, tensor in state.items():
    np.testing.assert_array_equal(back[name], tensor, err_msg=name)


def test_the_published_encoder_has_18_million_parameters():
  shapes = jax.eval_shape(
    StyleEncoder().init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 64, 64), int)
  )
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 18_069_304
  assert StyleEncoder().num_tokens_channels == 1280


@pytest.mark.parametrize(('stride', 'inputs', 'outputs'), [(1, 4, 2), (2, 2, 4)])
def test_grouped_convolution_and_its_gradients_are_those_of_xla(stride, inputs, outputs):
  rng = np.random.default_rng(1)
  x = rng.standard_normal((2, 5, 6, 3 * inputs), np.float32)
  kernel = rng.standard_normal((3, 3, inputs, 3 * outputs), np.float32)
  weights = rng.standard_normal((2, -(-5 // stride), 6 // stride, 3 * outputs), np.float32)

  def by_xla(x, kernel):
    layout = ('NHWC', 'HWIO', 'NHWC')
    padding = ((1, 1), (1, 1))
    return lax.conv_general_dilated(x, kernel, (stride,) * 2, padding, dimension_numbers=layout, feature_group_count=3)

  def all_of(conv):
    def run(x, kernel):
      y, pullback = jax.vjp(conv, x, kernel)
      return y, pullback(weights)

    return jax.jit(run)(x, kernel)

  forms = [grouped_conv3x3, *(functools.partial(style_encoder._by_convolution, together=n) for n in (1, 2, 3))]
  for form in forms:
    ours = all_of(lambda x, kernel, form=form: form(x, kernel, 3, stride))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), ours, all_of(by_xla))


@pytest.mark.parametrize(
  ('inputs', 'outputs', 'groups'), [(4, 8, 1), (8, 16, 3), (32, 64, 10), (128, 256, 19), (32, 8, 5), (256, 64, 19)]
)
def test_tpus_convolve_groups_as_wide_as_their_matrix_units(inputs, outputs, groups):
  conv = jax.jit(lambda x, kernel: grouped_conv3x3(x, kernel, 19, 1))
  shapes = (2, 8, 8, 19 * inputs), (3, 3, inputs, 19 * outputs)
  traced = conv.trace(*(jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes))
  for platform, expected in (('tpu', groups), ('cuda', 19)):
    assert f'feature_group_count = {expected} ' in traced.lower(lowering_platforms=(platform,)).as_text()
  assert 'feature_group_count' not in traced.lower(lowering_platforms=('cpu',)).as_text()


@pytest.mark.parametrize('together', [1, 2])
def test_on_accelerators_a_spread_batch_is_convolved_where_it_lies(together):
  mesh = make_mesh(2)
  rng = np.random.default_rng(1)
  x = jax.device_put(rng.standard_normal((8, 5, 6, 6), np.float32), NamedSharding(mesh, PartitionSpec(BATCH_AXES)))
  kernel = rng.standard_normal((3, 3, 2, 9), np.float32)

  def run(form):
    def loss(x, kernel):
      with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return (form(x, kernel, 3, 2) ** 2).sum()

    return jax.jit(jax.value_and_grad(loss, (0, 1))).lower(x, kernel).compile()

  ours = run(functools.partial(style_encoder._by_convolution, together=together))
  expected = run(grouped_conv3x3)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
  jax.tree.map(close, ours(x, kernel), expected(x, kernel))
  assert set(hlo.by_kind(hlo.collectives(ours.as_text()))) == {'all-reduce'}


def test_tokens_pool_over_each_class_alone():
  rng = np.random.default_rng(2)
  x = rng.standard_normal((1, 4, 4, 3 * 2), np.float32)
  label = rng.integers(0, 2, (1, 4, 4))
  module = Tokens(5)
  tokens, variables = module.init_with_output(jax.random.key(0), x, jax.nn.one_hot(label, 3))
  kernel, bias = (np.asarray(variables['params'][name]) for name in ('kernel', 'bias'))
  for k in range(2):
    own = slice(5 * k, 5 * k + 5)
    mean = x[0][label[0] == k][:, 2 * k : 2 * k + 2].mean(0)
    np.testing.assert_allclose(tokens[0, k], np.tanh(mean @ kernel[:, own] + bias[own]), rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(tokens[0, 2], jnp.tanh(bias[10:]))


def test_pixels_of_no_class_count_for_none(small):
  variables, image, label = small
  tokens = _apply(SMALL)(variables, image, label)
  label = np.where(label == 1, 3, label)
  without = _apply(SMALL)(variables, image, label)
  np.testing.assert_allclose(without[:, 1], jnp.tanh(variables['params']['tokens0']['bias'][None, 4:8]).repeat(2, 0))
  np.testing.assert_array_equal(without[:, ::2], tokens[:, ::2])


def test_bfloat16_is_close_and_tokens_stay_float32(small):
  variables, image, label = small
  half = _apply(SMALL.clone(dtype=jnp.bfloat16))(variables, image, label)
  assert half.dtype == jnp.float32
  np.testing.assert_allclose(half, _apply(SMALL)(variables, image, label), atol=0.05)


@pytest.mark.parametrize(
  ('image', 'label', 'message'),
  [
    ((1, 8, 10, 3), (1, 8, 10), 'picture of 8x10 pixels 2 times.* multiples of 4; resize 10 to 8 or 12'),
    ((1, 2, 8, 3), (1, 2, 8), 'resize 2 to 4'),
    ((2, 8, 8, 3), (2, 4, 4), r'label maps \[2, 4, 4\].*must be \[2, 8, 8\]'),
  ],
)
def test_pictures_that_do_not_fit_are_named(image, label, message):
  with pytest.raises(UserError, match=message):
    jax.eval_shape(SMALL.init, jax.random.key(0), jnp.zeros(image), jnp.zeros(label, int))


def test_an_encoder_without_scales_is_refused():
  with pytest.raises(UserError, match='num_downsamples=1 .* at least 2'):
    StyleEncoder(num_downsamples=1)


def test_a_checkpoint_with_a_missing_tensor_is_refused():
  _, state, _ = load('scadm/style_encoder')
  del state['out.out_1.0.bias']
  with pytest.raises(UserError, match=r'no scadm_style_encoder checkpoint: 1 missing: out\.out_1\.0\.bias'):
    convert.from_reference(state)
