"""IPM-Net against stored numbers of its PyTorch code, and its parts against their definitions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from jaxface import convert
from jaxface.errors import UserError
from jaxface.models.ipmnet import (
  IPMNet,
  MultiScaleDiscriminator,
  Up,
  from_parts,
  halve,
  instance_norm,
  mirror,
  pass_through,
  upsampled_conv5x5,
)
from jaxface.state import count
from jaxface.texture import content_input
from jaxface.untrained import untrained
from tests.golden import load, nchw, nhwc

SMALL = IPMNet(dim=4, mlp_dim=8, style_dim=6, num_blocks=1)


@functools.cache
def _apply(module, **options):
  """`module.apply`, compiled once for all tests that use it."""
  return jax.jit(functools.partial(module.apply, **options))


@pytest.fixture(scope='module')
def small():
  """Variables for `SMALL`, pictures and what they keep."""
  rng = np.random.default_rng(0)
  image, kept = rng.uniform(-1, 1, (2, 2, 16, 20, 3)).astype(np.float32)
  return untrained(jax.eval_shape(SMALL.init, jax.random.key(0), image, kept)), image, kept


@pytest.mark.parametrize('case', ['generator_small', 'generator_small_batch1'])
def test_generator_matches_the_golden(case):
  about, state, arrays = load(f'ipmnet/{case}')
  module, variables = convert.from_reference('ipmnet_generator', state)

  @jax.jit
  def run(variables, image, mask, texture, other_style):
    shortcut = content_input(image, mask, texture, about['config']['texture_weight'])
    style = module.apply(variables, image, method='encode_style')
    content = module.apply(variables, shortcut, method='encode_content')
    # In one batch, for one compilation.
    styles = jnp.concatenate([style, other_style, style[::-1]])
    many = lambda t: jnp.concatenate([t] * 3)
    own, other, swapped = jnp.split(module.apply(variables, many(content), styles, many(shortcut), method='decode'), 3)
    return {
      'style': style[:, None, None], 'content': content, 'shortcut': shortcut,
      'own': own, 'other': other, 'swapped': swapped,
    }  # fmt: skip

  inputs = [nhwc(arrays[name]) for name in ('image', 'mask', 'texture')]
  ours = {name: nchw(value) for name, value in run(variables, *inputs, arrays['other_style'][:, :, 0, 0]).items()}
  ours['shortcut'] = ours['shortcut'][..., ::4, ::4]
  if case == 'generator_small':
    ours |= {name: ours[name][..., ::2, 1::2] for name in ('other', 'swapped')}
    ours['content'] = ours['content'][:, ::2]
  tolerance = about['tolerance']
  for name in ours.keys() & arrays.keys():
    np.testing.assert_allclose(ours[name], arrays[name], rtol=tolerance['rel'], atol=tolerance['abs'] / 4, err_msg=name)


def test_discriminator_matches_the_golden_in_scores_penalty_and_gradient():
  about, state, arrays = load('ipmnet/discriminator_small')
  module, variables = convert.from_reference('ipmnet_discriminator', state)

  def loss(params, fake, real):
    judge = lambda image: module.apply({'params': params}, image)
    scores, pullback = jax.vjp(judge, real)
    penalties = []
    for scale in range(module.num_scales):
      (slope,) = pullback(tuple(jnp.ones_like(s) * (i == scale) for i, s in enumerate(scores)))
      penalties.append(0.01 * jnp.square(slope).sum((1, 2, 3)).mean())
    fakes = judge(fake)
    total = sum(jnp.square(f).mean() + jnp.square(r - 1).mean() for f, r in zip(fakes, scores, strict=True))
    return total + sum(penalties), (jnp.stack(penalties), {'fake': fakes, 'real': scores})

  fake, real = nhwc(arrays['fake']), nhwc(arrays['real'])
  run = jax.jit(jax.value_and_grad(loss, has_aux=True))
  (total, (penalty, scores)), gradient = run(variables['params'], fake, real)
  tolerance = about['tolerance']
  close = functools.partial(np.testing.assert_allclose, rtol=tolerance['rel'], atol=tolerance['abs'] / 10)
  for kind, maps in scores.items():
    for scale, ours in enumerate(maps):
      close(nchw(ours), arrays[f'{kind}_out{scale}'], err_msg=f'{kind} {scale}')
  close(total, arrays['dis_loss'])
  np.testing.assert_allclose(penalty, arrays['penalty'], rtol=1e-4)
  named = convert.to_reference('ipmnet_discriminator', {'params': gradient})
  for name in [name for name in arrays if name.startswith('grad/')]:
    close(named[name.removeprefix('grad/')], arrays[name], err_msg=name)


@pytest.mark.parametrize('mode', ['reflect', 'symmetric'])
# The last has pixels that are mirrored over both borders.
@pytest.mark.parametrize(('size', 'pixels'), [((2, 3), 1), ((5, 7), 3), ((4, 4), 3)])
def test_mirroring_has_the_gradient_of_numpys_padding(size, pixels, mode):
  rng = np.random.default_rng(7)
  x = rng.standard_normal((2, *size, 3)).astype(np.float32)
  widened = (side + 2 * pixels for side in size)
  weights = rng.standard_normal((2, *widened, 3)).astype(np.float32)
  padded = lambda x: jnp.pad(x, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)), mode=mode)

  def both(pad):
    gradient = jax.grad(lambda x: jnp.sum(weights * pad(x) ** 3))
    return pad(x), gradient(x), jax.grad(lambda x: jnp.sum(gradient(x) ** 2))(x)

  actual, expected = (jax.jit(functools.partial(both, pad))() for pad in (lambda x: mirror(x, pixels, mode), padded))
  np.testing.assert_array_equal(actual[0], expected[0])
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), actual[1:], expected[1:])


@pytest.mark.parametrize('size', [(3, 5), (2, 2)])
def test_the_enlarging_convolution_is_the_one_of_the_enlarged_mirrored_picture(size):
  rng = np.random.default_rng(1)
  x = rng.standard_normal((2, *size, 3)).astype(np.float32)
  kernel = rng.standard_normal((5, 5, 3, 4)).astype(np.float32)
  weights = rng.standard_normal((2, 2 * size[0], 2 * size[1], 4)).astype(np.float32)

  def defined(x, kernel):
    large = jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
    large = jnp.pad(large, ((0, 0), (2, 2), (2, 2), (0, 0)), mode='reflect')
    return lax.conv_general_dilated(large, kernel, (1, 1), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))

  ours = lambda x, kernel: from_parts(upsampled_conv5x5(x, kernel))
  with_gradients = lambda f: jax.jit(lambda *a: (f(*a), jax.grad(lambda *a: jnp.vdot(f(*a), weights), (0, 1))(*a)))
  actual, expected = (with_gradients(f)(x, kernel) for f in (ours, defined))
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), actual, expected)


def test_instance_norm_is_exact_for_channels_that_hardly_vary():
  x = np.random.default_rng(2).standard_normal((2, 8, 8, 3)).astype(np.float32) * (1, 1e-2, 0) + (0, 30, -5)
  affine = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
  wide = x.astype(np.float32).astype(np.float64)
  expected = (wide - wide.mean((1, 2), keepdims=True)) / np.sqrt(wide.var((1, 2), keepdims=True) + 1e-5)
  # float32 knows a mean of 30 to 2e-6, and normalising multiplies that by up to 300.
  np.testing.assert_allclose(instance_norm(x.astype(np.float32)), expected, atol=1e-3)
  shift, scale = affine[:, 0, None, None], affine[:, 1, None, None]
  np.testing.assert_allclose(instance_norm(x.astype(np.float32), affine), expected * scale + shift, atol=1e-2)


def test_the_layer_norm_is_of_all_pixels_and_channels_by_the_unbiased_deviation():
  rng = np.random.default_rng(4)
  x = rng.standard_normal((2, 2, 2, 3)).astype(np.float32) * 1e-5  # Of the size of the epsilon.
  params = {'kernel': rng.standard_normal((5, 5, 3, 1)).astype(np.float32)}
  params |= {name: rng.random(1, np.float32) * size for name, size in (('bias', 1e-5), ('scale', 1), ('shift', 1))}
  convolved = jax.jit(lambda x, kernel: from_parts(upsampled_conv5x5(x, kernel)))(x, params['kernel'])
  y = np.asarray(convolved, np.float64) + params['bias']
  mean, std = y.mean((1, 2, 3), keepdims=True), y.std((1, 2, 3), ddof=1, keepdims=True)
  expected = np.maximum((y - mean) / (std + 1e-5) * params['scale'] + params['shift'], 0)
  np.testing.assert_allclose(jax.jit(Up(1, jnp.float32).apply)({'params': params}, x), expected, atol=1e-4)


def test_halving_averages_what_is_inside():
  x = np.random.default_rng(3).standard_normal((1, 5, 6, 2)).astype(np.float32)
  around = lambda i, length: slice(max(2 * i - 1, 0), min(2 * i + 2, length))
  expected = [[x[0, around(i, 5), around(j, 6)].mean((0, 1)) for j in range(3)] for i in range(3)]
  np.testing.assert_allclose(halve(x)[0], expected, atol=1e-6)


def test_a_call_is_the_three_parts_with_the_own_style_or_another(small):
  variables, image, kept = small
  style = _apply(SMALL, method='encode_style')(variables, image)
  content = _apply(SMALL, method='encode_content')(variables, kept)
  assert style.shape == (2, 6)
  assert content.shape == (2, 4, 5, 16)
  for given, code in ((None, style), (style[::-1], style[::-1])):
    expected = _apply(SMALL, method='decode')(variables, content, code, kept)
    np.testing.assert_allclose(_apply(SMALL)(variables, image, kept, given), expected, atol=1e-5)


@functools.cache
def _gradients(module):
  """Of a loss with respect to variables and picture, compiled once for all tests that use it."""
  loss = lambda variables, image, kept: jnp.square(module.apply(variables, image, kept) - image).mean()
  return jax.jit(jax.grad(loss, (0, 1)))


def test_flat_pictures_have_finite_gradients(small):
  variables, image, _ = small
  flat = np.zeros_like(image)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(_gradients(SMALL)(variables, flat, flat)))


def test_recomputation_changes_the_program_but_not_its_gradients(small):
  plain, remat = _gradients(SMALL), _gradients(SMALL.clone(remat=True))
  assert ['remat' in str(g.trace(*small).jaxpr) for g in (plain, remat)] == [False, True]
  close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
  jax.tree.map(close, remat(*small), plain(*small))


def test_bfloat16_is_close_and_keeps_float32_at_the_ends(small):
  variables, image, kept = small
  half, full = (_apply(SMALL.clone(dtype=dtype))(variables, image, kept) for dtype in (jnp.bfloat16, jnp.float32))
  assert half.dtype == jnp.float32
  assert 0 < np.abs(half - full).max() < 0.05 * np.abs(full).max()
  judge = MultiScaleDiscriminator(dim=4, num_layers=2, num_scales=2, dtype=jnp.bfloat16)
  judges = untrained(jax.eval_shape(judge.init, jax.random.key(0), image))
  scores = jax.jit(judge.apply)(judges, image)
  assert {leaf.dtype for leaf in (*scores, *jax.tree.leaves(judges))} == {jnp.dtype('float32')}
  assert all(np.isfinite(score).all() for score in scores)


def test_sizes_are_the_published_ones():
  picture = jax.ShapeDtypeStruct((2, 256, 256, 3), jnp.float32)
  made, variables = jax.eval_shape(lambda x: IPMNet().init_with_output(jax.random.key(0), x, x), picture)
  assert made.shape == (2, 256, 256, 3)
  assert count(variables) == 15_088_863 - 672
  scores, variables = jax.eval_shape(
    lambda x: MultiScaleDiscriminator().init_with_output(jax.random.key(0), x), picture
  )
  assert [score.shape for score in scores] == [(2, side, side, 1) for side in (16, 8, 4)]
  assert count(variables) == 8_271_171


def test_kernels_are_he_normal_and_the_layer_norm_uniform():
  params = jax.jit(Up(64, jnp.float32).init)(jax.random.key(0), np.zeros((1, 2, 2, 32), np.float32))['params']
  params = jax.tree.map(np.asarray, params)
  assert params['kernel'].std() == pytest.approx(np.sqrt(2 / (25 * 32)), rel=0.02)
  assert 0 <= params['scale'].min() < 0.1
  assert 0.9 < params['scale'].max() < 1
  assert not params['bias'].any()
  assert not params['shift'].any()


def test_the_last_convolution_may_begin_by_changing_nothing():
  picture = np.random.default_rng(0).standard_normal((2, 16, 17, 3), np.float32)
  final = nn.Conv(3, (7, 7), padding=3, kernel_init=pass_through)
  through, _ = jax.jit(lambda x: final.init_with_output(jax.random.key(0), x))(picture)
  np.testing.assert_array_equal(through, picture)
  init = lambda network: jax.jit(lambda x: network.init(jax.random.key(0), x, x)['params']['decoder']['final'])
  kernels = [init(SMALL.clone(passes_through=chosen))(picture[:1, :, :16])['kernel'] for chosen in (True, False)]
  assert [np.count_nonzero(kernel) for kernel in kernels] == [3, 7 * 7 * 3 * 3]


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: IPMNet(num_blocks=0), 'num_blocks=0'),
    (lambda: MultiScaleDiscriminator(num_scales=0), 'num_scales=0; .*at least 1'),
    (lambda: _lazily('encode_style', (1, 15, 32, 3)), r'\(1, 15, 32, 3\).*from 16 pixels'),
    (lambda: _lazily('encode_content', (1, 32, 32, 1)), r'\(1, 32, 32, 1\).*\[B, H, W, 3\]'),
    (lambda: _lazily('encode_content', (1, 33, 32, 3)), '33x32 pixels.*multiples of 4, such as 32x32'),
    (
      lambda: _lazily('decode', (1, 4, 4, 16), (1, 6), (1, 32, 32, 3)),
      r'shortcut \(1, 32, 32, 3\) do not fit.*shortcut \(1, 16, 16, 3\)',
    ),
    (
      lambda: MultiScaleDiscriminator().init(jax.random.key(0), jnp.zeros((1, 63, 64, 3))),
      r'\(1, 63, 64, 3\) given to a discriminator of 3 scales and 4 layers; .* from 64 pixels',
    ),
  ],
)
def test_wrong_input_says_what_is_right(make, message):
  with pytest.raises(UserError, match=message):
    make()


def _lazily(method, *shapes):
  """Calls a method of `SMALL` without computing anything."""
  arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  jax.eval_shape(functools.partial(SMALL.init, jax.random.key(0), method=method), *arrays)
