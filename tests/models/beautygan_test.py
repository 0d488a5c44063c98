"""BeautyGAN's networks against stored numbers of its code, and as networks of other sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import convert
from jaxface.errors import UserError
from jaxface.models.beautygan import BeautyGenerator, Conv, ConvTranspose, PatchDiscriminator
from jaxface.state import count
from tests.golden import load

SMALL = PatchDiscriminator(4, 1)


def _pictures(arrays, *names):
  return [arrays[name].transpose(0, 2, 3, 1) for name in names]


def test_generator_matches_the_golden():
  about, state, arrays = load('beautygan/generator_small')
  module, variables = convert.from_reference('beautygan_generator', state)
  assert (module.dim, module.num_blocks) == (16, 2)
  capture = lambda layer, _: layer.name == 'up1_norm'
  apply = functools.partial(module.apply, capture_intermediates=capture, mutable=['intermediates'])
  (made_up, cleaned), captured = jax.jit(apply)(variables, *_pictures(arrays, 'x', 'y'))
  features = jnp.maximum(captured['intermediates']['up1_norm']['__call__'][0], 0)
  ours = {'features': features[:, ::4, ::4, ::2], 'out_a': made_up[:, ::2], 'out_b': cleaned[:, ::2]}
  for name, value in ours.items():
    expected = arrays[name].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(value, expected, rtol=0, atol=about['tolerance']['abs'], err_msg=name)


def test_published_sizes():
  picture = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
  (made_up, cleaned), variables = jax.eval_shape(
    BeautyGenerator().init_with_output, jax.random.key(0), picture, picture
  )
  assert made_up.shape == cleaned.shape == (1, 256, 256, 3)
  assert count(variables['params']) == 9_237_376
  scores, _ = jax.eval_shape(PatchDiscriminator().init_with_output, jax.random.key(0), picture)
  assert scores.shape == (1, 30, 30, 1)


def test_generator_in_bfloat16_is_close_and_keeps_float32_at_the_ends():
  module = BeautyGenerator(4, 1)
  source, reference = jax.random.uniform(jax.random.key(0), (2, 1, 16, 20, 3), minval=-1)
  variables = jax.jit(module.init)(jax.random.key(1), source, reference)
  whole, half = (jax.jit(m.apply)(variables, source, reference) for m in (module, module.clone(dtype=jnp.bfloat16)))
  assert {leaf.dtype for leaf in jax.tree.leaves((half, variables))} == {jnp.dtype('float32')}
  for a, b in zip(whole, half, strict=True):
    assert 0 < np.abs(a - b).mean() < 0.05 * np.abs(a - a.mean()).mean()


@pytest.fixture(scope='module')
def discriminator():
  """The golden's module, variables and pictures, and a compiled training pass with the gradient of its loss."""
  about, state, arrays = load('beautygan/discriminator_small')
  module, variables = convert.from_reference('beautygan_discriminator', state)

  @jax.jit
  def run(variables, image):
    def loss(params):
      scores, changed = module.apply({**variables, 'params': params}, image, train=True, mutable=['spectral'])
      return jnp.mean(jnp.square(scores - 1)), (scores, {**variables, **changed})

    (value, (scores, moved)), gradient = jax.value_and_grad(loss, has_aux=True)(variables['params'])
    return value, scores, moved, gradient

  return about, arrays, module, variables, run


def test_discriminator_matches_the_golden_while_its_vectors_move(discriminator):
  about, arrays, module, variables, run = discriminator
  assert (module.dim, module.num_layers) == (16, 3)
  tolerance = {'rtol': about['tolerance']['rel'], 'atol': about['tolerance']['abs']}
  (image,) = _pictures(arrays, 'x')
  moved = variables
  for forward in (1, 2, 3):
    loss, scores, moved, gradient = run(moved, image)
    np.testing.assert_allclose(scores[..., 0], arrays[f'out_{forward}'], **tolerance, err_msg=f'forward {forward}')
    if forward == 1:
      np.testing.assert_allclose(loss, arrays['loss'], rtol=1e-4)
      ours = convert.to_reference('beautygan_discriminator', {'params': gradient, 'spectral': moved['spectral']})
      before = convert.to_reference('beautygan_discriminator', variables)
      weight, u = before['main.2.weight_bar'], before['main.2.weight_u']
      v = weight.reshape(len(u), -1).T @ u
      np.testing.assert_allclose(ours['main.2.weight_v'], v / np.linalg.norm(v), atol=1e-5)
      for name in ('main.0.weight_bar', 'conv1.weight_bar'):
        expected = arrays[f'grad/{name}']
        np.testing.assert_allclose(ours[name], expected, rtol=0, atol=1e-4 * np.abs(expected).max(), err_msg=name)
  back = convert.to_reference('beautygan_discriminator', moved)
  np.testing.assert_allclose(back['main.2.weight_u'], arrays['u_after_3'], atol=1e-5)


def test_evaluation_repeats_the_last_training_pass(discriminator):
  _, arrays, module, variables, run = discriminator
  (image,) = _pictures(arrays, 'x')
  _, scores, moved, _ = run(variables, image)
  still = jax.jit(module.apply)(moved, image)
  np.testing.assert_allclose(still, scores, atol=1e-5)


def test_a_fresh_discriminator_is_ready_and_becomes_normal():
  image = jax.random.uniform(jax.random.key(0), (2, 12, 8, 3), minval=-1)
  variables = jax.jit(SMALL.init)(jax.random.key(1), image)
  limit = 1 / np.sqrt(16 * 3)
  for leaf in variables['params']['conv0'].values():
    assert 0.5 * limit < np.abs(leaf).max() <= limit
  step = jax.jit(functools.partial(SMALL.apply, train=True, mutable=['spectral']))
  for _ in range(60):
    _, moved = step(variables, image)
    variables = {**variables, **moved}
  for name, layer in variables['params'].items():
    matrix = layer['kernel'].reshape(-1, layer['kernel'].shape[-1])
    u, v = variables['spectral'][name]['u'], variables['spectral'][name]['v']
    np.testing.assert_allclose(v @ matrix @ u, np.linalg.norm(matrix, 2), rtol=1e-3)


def test_wrong_pictures_are_refused():
  for source, reference in (((1, 18, 16, 3),) * 2, ((1, 16, 16, 3), (2, 16, 16, 3)), ((16, 16, 3),) * 2):
    with pytest.raises(UserError, match=r'source \(.*one shape, H and W multiples of 4'):
      jax.eval_shape(BeautyGenerator(4, 1).init, jax.random.key(0), jnp.zeros(source), jnp.zeros(reference))
  with pytest.raises(UserError, match=r'\(1, 23, 64, 3\).*at least 24'):
    jax.eval_shape(PatchDiscriminator().init, jax.random.key(0), jnp.zeros((1, 23, 64, 3)))


def test_networks_of_nothing_are_refused():
  for make, message in ((BeautyGenerator, 'dim=0'), (PatchDiscriminator, 'dim=0; .*at least 1')):
    with pytest.raises(UserError, match=message):
      make(dim=0)


def test_a_fresh_generators_kernels_are_xavier_normal():
  kernel = Conv(64, 7).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))['params']['kernel']
  np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (49 * (3 + 64))), rtol=0.03)
  kernel = ConvTranspose(16).init(jax.random.key(0), jnp.zeros((1, 8, 8, 64)))['params']['kernel']
  np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (16 * (16 + 64))), rtol=0.03)
