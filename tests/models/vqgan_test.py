"""The VQ autoencoder against stored numbers of its code, and its quantiser by itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.convert import vqgan as convert
from jaxface.errors import UserError
from jaxface.models.vqgan import (
  VQGAN,
  Attention,
  Downsample,
  Quantised,
  Quantiser,
  ResidualBlock,
  Upsample,
  nearest,
  quantiser_loss,
)
from jaxface.state import count
from tests.golden import load, nhwc


def _close(about, found, expected, name=''):
  tolerance = about['tolerance']
  np.testing.assert_allclose(found, expected, rtol=tolerance['relative'], atol=tolerance['absolute'], err_msg=name)


def _params(state, public, names):
  """A block's parameters from its public tensors."""
  params = {}
  for theirs, ours in names.items():
    weight, bias = state[f'{public}.{theirs}.weight'], state[f'{public}.{theirs}.bias']
    norm = weight.ndim == 1
    params[ours] = {'scale': weight, 'bias': bias} if norm else {'kernel': weight.transpose(2, 3, 1, 0), 'bias': bias}
  return {'params': params}


def test_blocks_match_the_golden():
  about, state, arrays = load('vqgan/blocks')
  layers = {'norm1': 'norm0', 'conv1': 'conv0', 'norm2': 'norm1', 'conv2': 'conv1', 'nin_shortcut': 'shortcut'}
  heads = {'norm': 'norm', 'q': 'query', 'k': 'key', 'v': 'value', 'proj_out': 'out'}
  residual = functools.partial(ResidualBlock(64).apply, _params(state, 'res', layers))
  attention = functools.partial(Attention().apply, _params(state, 'attn', heads))

  @jax.jit
  def run(x):
    return {
      'res': residual(x),
      'res_small': residual(0.001 * x),
      'attn': attention(x),
      'attn_small': attention(0.001 * x),
      'down': Downsample().apply(_params(state, 'down', {'conv': 'conv'}), x),
      'up': Upsample().apply(_params(state, 'up', {'conv': 'conv'}), x)[..., ::4],
    }

  found = run(nhwc(arrays['x']))
  assert found.keys() == set(about['outputs'])
  for name, value in found.items():
    _close(about, value, arrays[name].transpose(0, 2, 3, 1), name)


@pytest.fixture(scope='module')
def golden():
  """The small network of the golden, and all that the tests compare of it, computed by one program."""
  about, state, arrays = load('vqgan/vq_small')
  module, variables = convert.from_reference(state)
  captured = lambda layer, _: layer.name in ('down0', 'middle_attention')

  @jax.jit
  def run(variables, image, cotangent, quantised):
    latent, seen = module.apply(
      variables, image, method='encode', capture_intermediates=captured, mutable=['intermediates']
    )
    codebook = variables['params']['quantiser']['codebook']

    def objective(latent, codebook):
      found = Quantiser(len(codebook)).apply({'params': {'codebook': codebook}}, latent)
      return quantiser_loss(found, placement='legacy') + (cotangent * found.latent).sum(), found

    (_, found), gradients = jax.value_and_grad(objective, (0, 1), has_aux=True)(latent, codebook)
    decode = functools.partial(module.apply, variables, method='decode')
    return {
      'latent': latent,
      'seen': seen['intermediates']['encoder'],
      'found': found,
      'loss': quantiser_loss(found, placement='legacy'),
      'gradients': gradients,
      'decoded': decode(quantised, quantise=False),
      'unquantised': decode(latent, quantise=False),
      'whole': module.apply(variables, image)[0],
      'in_parts': decode(latent),
    }

  inputs = (nhwc(arrays[name]) for name in ('x', 'cot', 'quantised'))
  return about, module, variables, arrays, run(variables, *inputs)


def test_encoder_and_decoder_match_the_golden(golden):
  about, module, _, arrays, found = golden
  assert module == VQGAN(32, (1, 2, 4), 1, 3, 64)
  assert module.factor == 4
  config, seen = about['config'], found['seen']
  ours = {
    'prequant': found['latent'],
    'decoded': found['decoded'],
    'decoded_unquantised': found['unquantised'],
    'down0': seen['down0']['__call__'][0][..., :: config['sub_down']],
    'mid_attn': seen['middle_attention']['__call__'][0][..., :: config['sub_mid']],
  }
  for name, value in ours.items():
    _close(about, value, arrays[name].transpose(0, 2, 3, 1), name)


def test_quantiser_and_its_gradients_match_the_golden(golden):
  about, _, _, arrays, found = golden
  sure = arrays['index_margin'] > 1e-5
  assert sure.mean() > 0.95
  np.testing.assert_array_equal(found['found'].indices[sure], arrays['indices'][sure])
  _close(about, found['found'].latent[sure], arrays['quantised'].transpose(0, 2, 3, 1)[sure])
  _close(about, found['loss'], arrays['codebook_loss'])
  to_latent, to_codebook = found['gradients']
  _close(about, to_latent, arrays['grad_h'].transpose(0, 2, 3, 1))
  _close(about, to_codebook, arrays['grad_codebook'])


def test_the_whole_is_its_parts(golden):
  found = golden[-1]
  np.testing.assert_allclose(found['whole'], found['in_parts'], atol=1e-5)
  assert np.abs(found['whole'] - found['unquantised']).max() > 0.01


def test_nearest_entries_are_those_by_distance_and_ties_go_to_the_first():
  rng = np.random.default_rng(0)
  latent, codebook = rng.standard_normal((2, 3, 4, 3)), rng.standard_normal((50, 3))
  expected = np.square(latent[..., None, :] - codebook).sum(-1).argmin(-1)
  indices = nearest(jnp.asarray(latent, jnp.float32), jnp.asarray(codebook, jnp.float32))
  assert indices.dtype == jnp.int32
  np.testing.assert_array_equal(indices, expected)
  twice = jnp.concatenate([codebook, codebook]).astype(jnp.float32)
  np.testing.assert_array_equal(nearest(jnp.asarray(latent, jnp.float32), twice), expected)


def test_beta_weighs_the_commitment_or_by_the_legacy_the_codebook():
  parts = Quantised(None, None, codebook=jnp.float32(2.0), commitment=jnp.float32(3.0))
  assert quantiser_loss(parts) == 2.75
  assert quantiser_loss(parts, placement='legacy') == 3.5
  assert quantiser_loss(parts, beta=1.0) == 5.0
  with pytest.raises(UserError, match="unknown loss.placement 'old'; choose from true, legacy"):
    quantiser_loss(parts, placement='old')


def test_published_size():
  picture = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
  (image, quantised), variables = jax.eval_shape(VQGAN().init_with_output, jax.random.key(0), picture)
  assert image.shape == (1, 256, 256, 3)
  assert quantised.latent.shape == (1, 64, 64, 3)
  assert quantised.indices.shape == (1, 64, 64)
  assert count(variables['params']) == 55_322_782


def test_bfloat16_and_recomputation_keep_float32_at_the_ends(golden):
  _, module, variables, arrays, found = golden
  changed = module.clone(dtype=jnp.bfloat16, remat=True)
  assert 'remat' in str(jax.make_jaxpr(changed.apply)(variables, nhwc(arrays['x'])))
  latent = jax.jit(functools.partial(changed.apply, method='encode'))(variables, nhwc(arrays['x']))
  image = jax.jit(functools.partial(changed.apply, method='decode', quantise=False))(variables, found['found'].latent)
  assert latent.dtype == image.dtype == jnp.float32
  for half, whole in ((latent, found['latent']), (image, found['decoded'])):
    assert 0 < np.abs(half - whole).mean() < 0.05 * np.abs(whole).mean()


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: VQGAN(width=48), 'width=48; it must be a multiple of 32'),
    (lambda: VQGAN(multipliers=()), r'multipliers=\(\); give'),
    (lambda: VQGAN(codebook_size=0), 'codebook_size=0; it must be at least 1'),
    (
      lambda: jax.eval_shape(VQGAN(32).init, jax.random.key(0), jnp.zeros((1, 64, 66, 3))),
      r'\(1, 64, 66, 3\).*multiples of 4',
    ),
  ],
)
def test_wrong_input_says_what_is_right(make, message):
  with pytest.raises(UserError, match=message):
    make()


def test_a_codebook_begins_as_wide_as_is_said():
  for spread, limit in ((None, 1 / 64), (0.5, 0.5)):
    variables = Quantiser(64, spread).init(jax.random.key(0), jnp.zeros((1, 2, 2, 3)))
    widest = jnp.abs(variables['params']['codebook']).max()
    assert 0.9 * limit < widest <= limit
