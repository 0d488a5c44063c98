"""The face-mask VAE against stored numbers of its Keras code, and as a network of other sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import convert, losses
from jaxface.errors import UserError
from jaxface.models.vae import FaceMaskVAE, stage_sizes, stage_widths
from jaxface.untrained import untrained
from tests.golden import load
from tests.smoke import TinyVae

SMALL = FaceMaskVAE(18, *stage_widths(18, 0.125), latent_dim=16)


@pytest.fixture(scope='module')
def small():
  """Variables, pictures and masks for `SMALL`, with moving statistics unlike the initial ones."""
  rng = np.random.default_rng(0)
  image = rng.random((4, 18, 18, 3), np.float32)
  mask = rng.random((4, 18, 18, 1), np.float32)
  variables = untrained(jax.eval_shape(SMALL.init, jax.random.key(0), image))
  stats = jax.tree.map(lambda t: t + 0.1 * rng.random(t.shape, np.float32), variables['batch_stats'])
  return {'params': variables['params'], 'batch_stats': stats}, image, mask


@functools.cache
def _apply(module, **options):
  """`module.apply`, compiled once for all tests that use it."""
  return jax.jit(functools.partial(module.apply, **options))


def _train(module):
  return jax.jit(functools.partial(module.apply, train=True, mutable=['batch_stats']))


@pytest.mark.parametrize(('case', 'trained'), [('predict', 9_328_228), ('predict_nomask', 9_059_331)])
def test_prediction_matches_the_golden(case, trained):
  about, state, arrays = load(f'vae/{case}')
  module, variables = convert.from_reference('vae', state)
  assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == about['config']['n_parameters']
  assert sum(leaf.size for leaf in jax.tree.leaves(variables['params'])) == trained

  prediction = jax.jit(module.apply)(variables, arrays['image'])
  ours = {
    'out_image': prediction.image[:, ::3, ::3],
    'out_image_pre': prediction.decoded[:, ::3, ::3],
    'z_mean': prediction.mean,
    'z_logvar': prediction.log_sigma,
  }
  if prediction.mask is not None:
    ours['out_mask'] = prediction.mask[:, ::3, ::3]
  for name in arrays.keys() - {'image'}:
    np.testing.assert_allclose(ours[name], arrays[name], rtol=0, atol=about['tolerance']['max_abs'], err_msg=name)


def test_first_training_step_matches_the_golden():
  about, state, arrays = load('vae/train_step')
  module, variables = convert.from_reference('vae', state)
  image, mask = arrays['image'], arrays['mask']
  prediction, updated = _train(module)(variables, image, mask=mask, noise=arrays['epsilon'][0])

  @jax.jit
  def terms(prediction):
    return {
      'kl': 1e-3 * losses.kl_divergence(prediction.mean, prediction.log_sigma),
      'ssim': losses.ssim_loss(image, prediction.image),
      'mse': 100 * losses.l2_loss(image, prediction.image),
      'bce': losses.binary_cross_entropy_from_logits(prediction.mask_logits, mask)
      + losses.dice_loss(prediction.mask, mask),
    }

  for name, value in terms(prediction).items():
    expected = about['values']['before_step1'][name]
    np.testing.assert_allclose(value, expected, rtol=about['tolerance']['losses_relative'], err_msg=name)
  moved = convert.to_reference('vae', {**variables, **updated})
  for name in [name for name in arrays if name.startswith('step1/') and 'moving' in name]:
    np.testing.assert_allclose(moved[name.removeprefix('step1/')], arrays[name], atol=1e-6, err_msg=name)


def test_prediction_composites_with_the_predicted_mask_or_the_given_one(small):
  variables, image, mask = small
  prediction, given = _apply(SMALL)(variables, image), _apply(SMALL)(variables, image, mask=mask)
  for composite, blend in ((prediction.image, prediction.mask), (given.image, mask)):
    np.testing.assert_allclose(composite, prediction.decoded * blend + image * (1 - blend), atol=1e-6)
  np.testing.assert_allclose(prediction.mask, jax.nn.sigmoid(prediction.mask_logits), atol=1e-6)


def test_encode_and_decode_are_the_two_halves(small):
  variables, image, _ = small
  mean, log_sigma = _apply(SMALL, method='encode')(variables, image)
  decoded, mask = _apply(SMALL, method='decode')(variables, mean)
  prediction = _apply(SMALL)(variables, image)
  for a, b in ((mean, 'mean'), (log_sigma, 'log_sigma'), (decoded, 'decoded'), (mask, 'mask')):
    np.testing.assert_allclose(a, getattr(prediction, b), atol=1e-6)


@pytest.mark.parametrize(('sampling', 'scale'), [('gaussian', jnp.exp), ('reference', lambda log_sigma: log_sigma)])
def test_noise_is_scaled_as_the_sampling_says(small, sampling, scale):
  variables, image, _ = small
  module = SMALL.clone(sampling=sampling)
  noise = np.random.default_rng(1).standard_normal((4, 16)).astype(np.float32)
  prediction = _apply(module)(variables, image, noise=noise)
  z = prediction.mean + noise * scale(prediction.log_sigma)
  decoded, _ = _apply(SMALL, method='decode')(variables, z)
  np.testing.assert_allclose(prediction.decoded, decoded, atol=1e-6)


def test_without_mask_decoder_the_picture_is_the_decoded_one(small):
  module = SMALL.clone(mask_widths=None)
  variables = untrained(jax.eval_shape(module.init, jax.random.key(0), small[1]))
  prediction = _apply(module)(variables, small[1])
  assert 'mask_decoder' not in variables['params']
  assert prediction.mask is None
  assert prediction.mask_logits is None
  np.testing.assert_array_equal(prediction.image, prediction.decoded)


def test_recomputation_changes_the_program_but_not_its_gradients():
  rng = np.random.default_rng(0)
  image, mask = rng.random((4, 4, 4, 3), np.float32), rng.random((4, 4, 4, 1), np.float32)
  tiny = TinyVae(4, ((4, 4), (8,)), (8, 4), (4, 4), latent_dim=8)
  variables = untrained(jax.eval_shape(tiny.init, jax.random.key(0), image))

  def gradients(module):
    def loss(params):
      changed = {**variables, 'params': params}
      prediction, _ = module.apply(changed, image, mask=mask, train=True, mutable=['batch_stats'])
      return jnp.square(prediction.image - image).mean() + jnp.square(prediction.mask - mask).mean()

    return jax.jit(jax.grad(loss))

  plain, remat = gradients(tiny), gradients(tiny.clone(remat=True))
  assert 'remat' not in str(plain.trace(variables['params']).jaxpr)
  assert 'remat' in str(remat.trace(variables['params']).jaxpr)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6),
    remat(variables['params']),
    plain(variables['params']),
  )


def test_bfloat16_is_close_and_keeps_float32_at_the_ends(small):
  variables, image, mask = small
  module = SMALL.clone(dtype=jnp.bfloat16)
  half, updated = _train(module)(variables, image, mask=mask)
  full, _ = _train(SMALL)(variables, image, mask=mask)
  assert {leaf.dtype for leaf in (*half, *jax.tree.leaves(updated))} == {jnp.dtype('float32')}
  np.testing.assert_allclose(half.image, full.image, atol=0.05)


@pytest.mark.parametrize('size', [16, 31, 200])
def test_any_size_is_retraced_by_the_decoders(size):
  module = FaceMaskVAE(size, *stage_widths(size, 1 / 16), latent_dim=8)
  image = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
  prediction, _ = jax.eval_shape(lambda image: module.init_with_output(jax.random.key(0), image), image)
  assert prediction.image.shape == (2, size, size, 3)
  assert prediction.mask.shape == (2, size, size, 1)


def test_sizes_and_widths_are_the_published_ones():
  assert stage_sizes(144) == (144, 72, 36, 18, 9, 4, 2, 1)
  assert FaceMaskVAE() == FaceMaskVAE(144, *stage_widths(144))
  encoder, decoder, mask = stage_widths(144)
  assert encoder == ((32, 32), (64, 64), (128, 128), (256, 256), (256,), (256,), (512,))
  assert decoder == (256, 256, 256, 128, 64, 32, 32)
  assert mask == (32,) * 7
  assert stage_widths(64, 0.5).encoder_widths == ((16, 16), (32, 32), (64, 64), (128, 128), (128,), (256,))
  hash(FaceMaskVAE())


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: stage_widths(8), 'image_size=8 is too small'),
    (lambda: stage_widths(64, 0.0), 'must be positive'),
    (lambda: FaceMaskVAE(64), r'encoder_widths has 7 stages, but 64 pixels are halved 6 times.*stage_widths\(64\)'),
    (lambda: FaceMaskVAE(144, mask_widths=(32,)), 'mask_widths has 1 stages'),
    (lambda: FaceMaskVAE(sampling='normal'), "unknown sampling 'normal'; choose from gaussian, reference"),
    (lambda: FaceMaskVAE(latent_dim=0), 'latent_dim=0'),
    (lambda: FaceMaskVAE().init(jax.random.key(0), jnp.zeros((1, 64, 64, 3))), r'\(1, 64, 64, 3\).*\[B, 144, 144, 3\]'),
  ],
)
def test_wrong_input_says_what_is_right(make, message):
  with pytest.raises(UserError, match=message):
    make()
