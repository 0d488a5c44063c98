"""SCA-DM's denoiser against stored numbers of the public code, and what is worked out once against what is not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxface.convert import scadm_unet, tensors
from jaxface.errors import UserError
from jaxface.models.attention import MaskedAttention
from jaxface.models.scadm import Conditioning, Residual, SCAUNet, Stage, Transformer, denoise_with_scores
from jaxface.models.unet_layers import Conv
from jaxface.resize import twice
from jaxface.state import count
from tests.golden import Initialised, load, nchw, nhwc

SMALL = SCAUNet(
  model_channels=32, multipliers=(1,), num_blocks=1, attention_factors=(), context_dim=6, num_classes=5, spade_hidden=8
)


def _one_hot(labels, classes=19):
  """[..., classes]; zeros for the class behind the last."""
  return np.eye(classes + 1, classes, dtype=np.float32)[labels]


def _closely(about, **ours_and_theirs):
  tolerance = about['tolerance']
  for name, (ours, theirs) in ours_and_theirs.items():
    np.testing.assert_allclose(ours, theirs, rtol=tolerance['relative'], atol=tolerance['absolute'] / 4, err_msg=name)


def _part(run, module, where, state, public, *inputs):
  """What `run(module, *inputs)` computes, jitted, with the tensors of a golden.

  `where` is the part's path in the network, `public` the public name of that place and the golden's name for it.
  """
  theirs, golden = public
  like = Initialised(nn.init(run, module))
  paths = {}
  for path in tensors.shapes(like, inputs=inputs):
    name = scadm_unet.public_name((*where, *path[1:]), num_blocks=1, with_transformer=False)
    paths[golden + name.removeprefix(theirs)] = path
  state = {name: tensor for name, tensor in state.items() if name.startswith(golden)}
  variables = tensors.variables_from('golden', state, like, paths, inputs=inputs)
  return jax.jit(nn.apply(run, module))(variables, *inputs)


def test_masked_attention_matches_the_golden_by_look_up_and_with_any_mask():
  about, state, arrays = load('scadm/masked_attention')
  module = MaskedAttention(channels=48, heads=3)
  labels = arrays['labels'][:, ::4, ::4].reshape(2, 64)
  soft = nhwc(arrays['soft_mask']).reshape(2, 64, 19)

  def run(module, x, tokens, labels, one_hot, soft):
    plain = module.keys(tokens, None)
    by_look_up = lambda labels: module(x, module.lookup(tokens, labels))
    by_mask = lambda mask: module(x, module.keys(tokens, mask))
    nothing = jnp.full_like(labels, 19), jnp.zeros_like(soft)
    return {
      'out': (by_look_up(labels), by_mask(one_hot)), 'out_soft_mask': (by_mask(soft),),
      'out_zero_mask': (by_look_up(nothing[0]), by_mask(nothing[1])), 'out_no_mask': (module(x, plain),),
    }  # fmt: skip

  where, public = ('decoder_0', 'transformer', 'to_classes'), ('output_blocks.0.1.transformer_blocks.0.attn2.', '')
  inputs = (arrays['x'], arrays['context'], labels, _one_hot(labels), soft)
  for name, ways in _part(run, module, where, state, public, *inputs).items():
    for way, ours in enumerate(ways):
      _closely(about, **{f'{name} {way}': (ours, arrays[name])})


def test_blocks_match_the_goldens():
  about, state, arrays = load('scadm/spade_block')
  x, conditioning = nhwc(arrays['x']), Conditioning(np.zeros((2, 19, 1), np.float32), arrays['labels'])

  def residual(module, x, emb, conditioning):
    shift, modulations = module.shift(emb), module.prepare(conditioning, x.shape[1:3])
    return [module(scale * x, shift, modulations) for scale in (1, 0.001)]

  public = 'output_blocks.0.0.', ''
  modulated = Residual(96, 64, spade_hidden=128)
  out, small = _part(residual, modulated, ('decoder_0', 'residual'), state, public, x, arrays['emb'], conditioning)
  _closely(about, out=(nchw(out), arrays['out']), out_small=(nchw(small), arrays['out_small']))

  about, state, arrays = load('scadm/res_block')
  x = nhwc(arrays['x'])
  public = 'input_blocks.1.0.', 'res.'
  out, small = _part(residual, Residual(32, 64), ('encoder_0', 'residual'), state, public, x, arrays['emb'], None)
  call = lambda module, x: module(x)
  down = _part(call, Conv(32, stride=2), ('shrink_0',), state, ('input_blocks.2.0.', 'down.'), x)
  up = _part(call, Conv(32), ('decoder_0', 'enlarge'), state, ('output_blocks.0.1.', 'up.'), twice(x))
  _closely(
    about, out=(nchw(out), arrays['out']), out_small=(nchw(small), arrays['out_small']),
    down=(nchw(down), arrays['down']), up=(nchw(up)[:, ::4], arrays['up']),
  )  # fmt: skip


def test_the_transformer_matches_the_golden():
  about, state, arrays = load('scadm/spatial_transformer')

  def run(module, x, conditioning):
    masked, plain = (module.prepare(c, (8, 8)) for c in (conditioning, Conditioning(conditioning.tokens)))
    outputs = {name: module(scale * x, masked) for name, scale in (('out', 1), ('out_small', 1e-3), ('out_tiny', 1e-5))}
    return outputs | {'out_no_mask': module(x, plain)}

  conditioning = Conditioning(arrays['context'], arrays['labels'])
  where, public = ('middle_0', 'transformer'), ('middle_block.1.', '')
  ours = _part(run, Transformer(64, 4), where, state, public, nhwc(arrays['x']), conditioning)
  _closely(about, **{name: (nchw(ours[name]), arrays[name]) for name in ours})


@pytest.fixture(scope='module')
def golden():
  """The network of the golden: description, module, variables and arrays."""
  about, state, arrays = load('scadm/unet')
  module, variables = scadm_unet.from_reference(state, head_channels=16)
  arrays['x'] = nhwc(arrays['x'])
  return about, module, variables, arrays


@pytest.fixture(scope='module')
def fresh(golden):
  """What the golden's network says with fresh conditioning, and what is in it, compiled once for all tests."""
  _, module, variables, _ = golden
  run = functools.partial(module.apply, capture_intermediates=True, mutable=['intermediates'])
  return functools.partial(jax.jit(run), variables)


@pytest.fixture(scope='module')
def cached(golden):
  """What it says with conditioning and times worked out before."""
  _, module, variables, _ = golden

  def cached(x, t, conditioning):
    times = _apply(module, 'times')(variables, t)
    return _apply(module)(variables, x, times, _apply(module, 'cache')(variables, conditioning, size=x.shape[1:3]))

  return cached


@functools.cache
def _apply(module, method=None):
  """`module.apply`, compiled once for all tests that use it."""
  return jax.jit(functools.partial(module.apply, method=method), static_argnames='size')


def test_the_network_matches_the_golden_fresh_and_cached(golden, fresh, cached):
  about, _, _, arrays = golden
  tokens, labels = arrays['context'], arrays['labels']
  no_class = np.full_like(labels, 19)
  for name, conditioning in (
    ('eps', Conditioning(tokens, labels)),
    ('eps_uncond', Conditioning(0 * tokens, no_class)),
    ('eps_zero_mask', Conditioning(tokens, no_class)),
    ('eps_zero_context', Conditioning(0 * tokens, labels)),
  ):
    eps, _ = fresh(arrays['x'], arrays['t'], conditioning)
    _closely(about, **{name: (nchw(eps), arrays[name])})
    np.testing.assert_allclose(cached(arrays['x'], arrays['t'], conditioning), eps, atol=1e-5)


def test_every_block_matches_the_golden(golden, fresh):
  about, _, _, arrays = golden
  _, kept = fresh(arrays['x'], arrays['t'], Conditioning(arrays['context'], arrays['labels']))
  at = lambda *path: functools.reduce(lambda tree, name: tree[name], path, kept['intermediates'])
  output = lambda *path: at(*path)['__call__'][0]
  attention = 'middle_0', 'transformer', 'to_classes'
  ours = {
    'time_embed': output('time2'), 'input_blocks.0': output('stem'), 'middle_block': output('middle_1'),
    'middle_attn1': output('middle_0', 'transformer', 'to_positions'), 'middle_attn2': output(*attention),
  }  # fmt: skip
  ours |= {f'input_blocks.{2 * i + 1}': output(f'encoder_{i}') for i in range(3)}
  ours |= {f'input_blocks.{2 * i + 2}': output(f'shrink_{i}') for i in range(2)}
  ours |= {f'output_blocks.{i}': output(f'decoder_{i}') for i in range(6)}
  stats = [(np.mean(ours[name]), np.std(ours[name], ddof=1)) for name in about['config']['block_stats_rows']]
  _closely(
    about, stats=(stats, arrays['block_stats']), emb=(ours['time_embed'], arrays['emb']),
    middle=(nchw(ours['middle_block']), arrays['middle']), input_1=(nchw(ours['input_blocks.1']), arrays['input_1']),
    middle_attn1=(ours['middle_attn1'], arrays['middle_attn1']),
    middle_attn2=(ours['middle_attn2'], arrays['middle_attn2']),
    scores=(at(*attention, 'scores')[0].reshape(12, 16, 19), arrays['sim_middle']),
  )  # fmt: skip


def test_scores_come_in_the_order_of_the_network(golden):
  _, module, variables, arrays = golden
  conditioning = Conditioning(arrays['context'], arrays['labels'])
  _, scores = jax.eval_shape(
    functools.partial(denoise_with_scores, module), variables, arrays['x'], arrays['t'], conditioning
  )
  assert [s.shape for s in scores] == [(2, heads, p, 19) for heads, p in [(4, 64), *[(6, 16)] * 4, *[(4, 64)] * 2]]


def test_conversion_comes_back_without_what_is_never_used(golden):
  _, state, _ = load('scadm/unet')
  back = scadm_unet.to_reference(golden[2])
  assert back.keys() == state.keys()
  assert not back.pop('label_emb.weight').any()
  for name, tensor in back.items():
    np.testing.assert_array_equal(tensor, state[name], err_msg=name)


def test_a_foreign_checkpoint_is_listed():
  _, state, _ = load('scadm/unet')
  state['middle_block.3.weight'] = state.pop('middle_block.1.proj_in.weight')
  state['out.2.bias'] = np.zeros(4, np.float32)
  with pytest.raises(
    UserError, match='1 missing: middle_block.1.*1 unexpected: middle_block.3.*1 misshapen: out.2.bias'
  ):
    scadm_unet.from_reference(state, head_channels=16)
  with pytest.raises(UserError, match='missing'):
    scadm_unet.from_reference({})


@pytest.fixture(scope='module')
def small():
  """Variables for `SMALL` with no zeros among them, latents, times and two kinds of conditioning."""
  rng = np.random.default_rng(0)
  normal = lambda *shape: rng.standard_normal(shape, np.float32)
  x, t, tokens = normal(3, 4, 6, 3), np.asarray([1, 500, 999]), normal(3, 5, 6)
  # Class 1 is absent; 5 is none.
  label = rng.choice([0, 2, 3, 4, 5], (3, 16, 24))
  one_class = Conditioning(tokens, label)
  soft = Conditioning(tokens, mask=rng.random((3, 16, 24, 5), np.float32) * rng.integers(0, 2, (3, 16, 24, 5)))
  shapes = jax.eval_shape(SMALL.init, jax.random.key(0), x, t, one_class)
  variables = jax.tree.map(lambda leaf: 0.3 * normal(*leaf.shape), shapes)
  return variables, x, t, one_class, soft


@pytest.mark.parametrize('soft', [False, True])
def test_a_cache_of_one_and_a_row_of_times_serve_a_batch(small, soft):
  variables, x, t, *both = small
  one = jax.tree.map(lambda leaf: leaf[:1], both[soft])
  all_alike = jax.tree.map(lambda leaf: np.repeat(leaf, 3, 0), one)
  cached = _apply(SMALL, 'cache')(variables, one, size=(4, 6))
  times = _apply(SMALL, 'times')(variables, t)
  for i, step in enumerate(t):
    eps = _apply(SMALL)(variables, x, np.full(3, step), all_alike)
    row = {name: leaf[i] for name, leaf in times.items()}
    np.testing.assert_allclose(_apply(SMALL)(variables, x, row, cached), eps, atol=1e-5)


@pytest.fixture(scope='module')
def stage(small):
  """A stage with everything in it, its variables, features and shift."""
  rng = np.random.default_rng(1)
  module = Stage(32, 64, 2, spade_hidden=8, up=True)
  x, shift = rng.standard_normal((3, 4, 6, 32), np.float32), rng.standard_normal((3, 64), np.float32)
  shapes = jax.eval_shape(module.init, jax.random.key(0), x, shift, small[3])
  return module, jax.tree.map(lambda leaf: 0.3 * rng.standard_normal(leaf.shape, np.float32), shapes), x, shift


def test_gradients_through_the_look_up_are_those_through_the_attention(small, stage):
  tokens, label = small[3].tokens, small[3].label
  module, variables, x, shift = stage

  @jax.jit
  def gradients(variables, x, tokens, **label_map):
    loss = lambda variables, x, tokens: jnp.square(module.apply(variables, x, shift, Conditioning(tokens, **label_map)))
    return jax.grad(lambda *args: loss(*args).mean(), (0, 1, 2))(variables, x, tokens)

  ours = gradients(variables, x, tokens, label=label)
  theirs = gradients(variables, x, tokens, mask=_one_hot(label, 5))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max()), ours, theirs)
  dead = ours[0]['params']['transformer']
  unused = (dead['norm2'], dead['to_classes']['query'], dead['to_classes']['key'])
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(unused))
  assert np.any(dead['to_classes']['value']['kernel'])
  assert np.any(ours[2])


def test_scores_have_gradients_with_recomputation_too(small):
  variables, x, t, conditioning, _ = small

  def loss(variables, module):
    eps, scores = denoise_with_scores(module, variables, x, t, conditioning)
    return jnp.square(eps).mean() + sum(jnp.square(s).mean() for s in scores)

  remat = SMALL.clone(remat=True)
  value, gradient = jax.jit(jax.value_and_grad(functools.partial(loss, module=remat)))(variables)
  np.testing.assert_allclose(value, jax.jit(functools.partial(loss, module=SMALL))(variables), rtol=1e-5)
  for name in ('query', 'key'):
    assert np.any(gradient['params']['middle_0']['transformer']['to_classes'][name]['kernel'])
  programs = [str(jax.make_jaxpr(functools.partial(loss, module=module))(variables)) for module in (SMALL, remat)]
  assert ['remat' in program for program in programs] == [False, True]


def test_half_precision_is_close_and_caches_in_its_type(small):
  variables, x, t, conditioning, _ = small
  module = SMALL.clone(dtype=jnp.bfloat16)
  half, full = (_apply(m)(variables, x, t, conditioning) for m in (module, SMALL))
  assert half.dtype == jnp.float32
  assert 0 < np.abs(half - full).max() < 0.1 * np.abs(full).max()
  cached = jax.eval_shape(lambda: module.apply(variables, conditioning, (4, 6), method='cache'))
  assert {leaf.dtype for leaf in jax.tree.leaves(cached)} == {jnp.dtype('bfloat16'), jnp.dtype('int32')}


def test_the_published_size():
  x, t = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
  tokens = jax.ShapeDtypeStruct((1, 19, 1280), jnp.float32)
  conditioning = Conditioning(tokens, label=jax.ShapeDtypeStruct((1, 256, 256), jnp.int32))
  variables = jax.eval_shape(SCAUNet().init, jax.random.key(0), x, t, conditioning)
  # Without the table of labels that the public code never uses.
  assert count(variables) == 486_912_387 - 19 * 896
  cache = functools.partial(SCAUNet().apply, size=(64, 64), method='cache')
  assert count(jax.eval_shape(cache, variables, conditioning)) == pytest.approx(31.4e6, rel=0.01)


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: SCAUNet(model_channels=100), 'model_channels=100.*multiple of 32, such as 96'),
    (lambda: SCAUNet(attention_factors=(3,)), r'attention_factors=\(3,\).*choose from \[1, 2, 4, 8\]'),
    (lambda: SCAUNet(head_channels=48), '448 channels do not divide.*head_channels=48'),
    (lambda: SCAUNet(num_blocks=0), 'num_blocks=0'),
    (lambda: _lazily(size=(7, 8)), 'a latent of 7x8; .* multiples of 2, such as 8x8'),
    (lambda: _lazily(mask=(1, 8, 8, 5)), 'one label map'),
    (lambda: _lazily(tokens=(1, 4, 6)), r'\(1, 4, 6\) given to a network for \[B, 5, 6\]'),
    (lambda: _lazily(label=None, mask=(1, 8, 8, 4)), r'mask of shape \(1, 8, 8, 4\).* of 5 classes'),
    (lambda: denoise_with_scores(SMALL, {}, None, None, None), 'no scores'),
  ],
)
def test_wrong_input_says_what_is_right(make, message):
  with pytest.raises(UserError, match=message):
    make()


def _lazily(size=(8, 8), tokens=(1, 5, 6), label=(1, 8, 8), mask=None):
  """Initialises `SMALL` with a second level, without computing anything."""
  empty = lambda shape, dtype=jnp.float32: None if shape is None else jax.ShapeDtypeStruct(shape, dtype)
  conditioning = Conditioning(empty(tokens), empty(label, jnp.int32), empty(mask))
  module = SMALL.clone(multipliers=(1, 2))
  jax.eval_shape(module.init, jax.random.key(0), empty((1, *size, 3)), empty((1,), jnp.int32), conditioning)
