"""SDM's UNet against stored numbers of its PyTorch code, and what it promises of conditioning and times."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxface.convert import sdm_unet as convert
from jaxface.errors import UserError
from jaxface.models.sdm import SDMUNet, condition_map
from tests.golden import load

SMALL = SDMUNet(32, (1, 2), num_blocks=1, attention_factors=(), head_channels=32, num_classes=3, spade_hidden=4)

TINY = SMALL.clone(multipliers=(1,))


def _variables(module, inputs):
  """Random ones, for features near 1; unlike the initial ones none is zero."""
  rng = np.random.default_rng(0)
  draw = lambda leaf: rng.standard_normal(leaf.shape, np.float32) / np.sqrt(max(leaf.size // leaf.shape[-1], 10))
  return jax.tree.map(draw, jax.eval_shape(module.init, jax.random.key(0), *inputs))


@pytest.fixture(scope='module')
def inputs():
  """Pictures that are not square, timesteps and label maps, some of their pixels without class."""
  rng = np.random.default_rng(1)
  x = rng.standard_normal((2, 4, 6, 3), np.float32)
  y = np.asarray(condition_map(rng.integers(0, 4, (2, 4, 6)), 3))
  t = np.array([7, 900])
  return x, t, y


@functools.cache
def _apply(module):
  return jax.jit(module.apply)


def test_output_with_and_without_label_map_matches_the_golden():
  about, state, arrays = load('sdm/unet')
  module, variables = convert.from_reference(state, head_channels=16)
  config = about['config']['module']
  assert module == SDMUNet(
    model_channels=config['model_channels'],
    multipliers=tuple(config['channel_mult']),
    num_blocks=config['num_res_blocks'],
    attention_factors=tuple(config['attention_resolutions']),
    head_channels=config['num_head_channels'],
    num_classes=config['num_classes'] - 1,
  )
  y = condition_map(arrays['labels'])
  np.testing.assert_array_equal(y[..., -1], arrays['edge'])
  np.testing.assert_array_equal(y[..., :-1].argmax(-1), arrays['labels'])

  run = _apply(module)
  tolerance = about['tolerance']
  x = arrays['x'].transpose(0, 2, 3, 1)
  for name, given in (('output', y), ('output_uncond', jnp.zeros_like(y))):
    np.testing.assert_allclose(
      run(variables, x, arrays['t'], given).transpose(0, 3, 1, 2),
      arrays[name],
      rtol=tolerance['relative'],
      atol=tolerance['absolute'],
      err_msg=name,
    )

  back = convert.to_reference(variables)
  assert back.keys() == state.keys()
  for name, tensor in state.items():
    np.testing.assert_array_equal(back[name], tensor, err_msg=name)


@pytest.mark.parametrize(
  'module',
  [
    SMALL,
    SDMUNet(32, (1,), num_blocks=3, attention_factors=(), head_channels=8, learn_sigma=False, spade_hidden=4),
    SDMUNet(32, (2, 1, 3), num_blocks=2, attention_factors=(1, 4), head_channels=32, num_classes=5),
    SDMUNet(),
  ],
)
def test_any_configuration_comes_back_from_its_shapes(module):
  side = 2 ** (len(module.multipliers) - 1)
  y = jax.ShapeDtypeStruct((1, side, side, module.num_classes + 1), jnp.float32)
  shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, side, side, 3)), jnp.zeros(1, int), y)
  # Views of one zero: the published network without its 2.6 GB.
  empty = {path: np.broadcast_to(np.float32(0), leaf.shape) for path, leaf in flatten_dict(shapes).items()}
  if module == SDMUNet():
    assert sum(leaf.size for leaf in empty.values()) == 653_062_918
  state = {name: convert._layout(name, empty[path]) for name, path in convert._paths(empty).items()}
  inferred = convert._module(state, module.head_channels)
  assert inferred == module


def test_edges_are_marked_on_both_sides_and_nothing_is_nothing():
  label = jnp.array([[[0, 0, 0, 0], [0, 1, 3, 0], [0, 0, 0, 0], [0, 0, 0, 0]]])
  y = condition_map(label, num_classes=3)
  edge = [[0, 1, 1, 0], [1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0]]
  np.testing.assert_array_equal(y[0, :, :, 3], edge)
  np.testing.assert_array_equal(y[0, 1, :, :3], [[1, 0, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0]])
  np.testing.assert_array_equal(condition_map(jnp.full((1, 2, 2), 3), num_classes=3), 0)
  assert y.dtype == jnp.float32


def test_cached_label_maps_and_times_give_what_fresh_ones_give(inputs):
  variables, (x, t, y) = _variables(SMALL, inputs), inputs
  fresh = _apply(SMALL)(variables, x, t, y)
  other = _apply(SMALL)(variables, x, t, y[::-1])
  assert np.abs(fresh - other).max() > 1e-2
  method = lambda variables, name, *given: SMALL.apply(variables, *given, method=name)
  cached, times = jax.jit(lambda v, y, t: (method(v, 'cache', y, (4, 6)), method(v, 'times', t)))(variables, y, t)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
  close(_apply(SMALL)(variables, x, times, cached), fresh)

  # One map and one timestep for all pictures, as a sampling has them.
  first = jax.tree.map(lambda leaf: leaf[:1], cached)
  row = {name: leaf[0] for name, leaf in times.items()}
  both = _apply(SMALL)(variables, x, row, first)
  close(both[0], fresh[0])
  close(both, _apply(SMALL)(variables, x, t[:1], y[:1]))


def test_recomputation_changes_the_program_but_not_its_gradients(inputs):
  variables = _variables(TINY, inputs)

  def gradients(module):
    return jax.jit(jax.grad(lambda variables: jnp.square(module.apply(variables, *inputs)).mean()))

  plain, remat = gradients(TINY), gradients(TINY.clone(remat=True))
  assert 'remat' not in str(plain.trace(variables).jaxpr)
  assert 'remat' in str(remat.trace(variables).jaxpr)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
  jax.tree.map(close, remat(variables), plain(variables))


def test_bfloat16_is_close_and_results_stay_float32(inputs):
  variables = _variables(TINY, inputs)
  half = _apply(TINY.clone(dtype=jnp.bfloat16))(variables, *inputs)
  full = _apply(TINY)(variables, *inputs)
  assert half.dtype == jnp.float32
  np.testing.assert_allclose(half, full, atol=0.05 * np.abs(full).max())


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: SDMUNet(40), 'model_channels=40 .*such as 32'),
    (lambda: SDMUNet(32, (1, 1), attention_factors=(4,)), r'attention_factors=\(4,\): no level is 4 times smaller'),
    (lambda: SDMUNet(32, (1, 1), attention_factors=()), 'do not divide into heads of head_channels=64'),
    (lambda: SDMUNet(num_blocks=0), 'num_blocks=0'),
  ],
)
def test_impossible_networks_are_refused(make, message):
  with pytest.raises(UserError, match=message):
    make()


@pytest.mark.parametrize(
  ('x', 'y', 'message'),
  [
    ((1, 4, 5, 3), (1, 4, 5, 4), 'picture of 4x5; sides must be multiples of 2, such as 4x4'),
    ((1, 4, 4, 3), (1, 2, 2, 4), r'label maps \[1, 2, 2, 4\] .*\[B, 4, 4, 4\]'),
    ((1, 4, 4, 3), (1, 4, 4, 3), 'and 3 classes'),
  ],
)
def test_inputs_that_do_not_fit_are_named(x, y, message):
  with pytest.raises(UserError, match=message):
    jax.eval_shape(SMALL.init, jax.random.key(0), jnp.zeros(x), jnp.zeros(1, int), jnp.zeros(y))


def test_a_checkpoint_of_something_else_is_refused():
  with pytest.raises(UserError, match='no sdm_unet checkpoint: .* missing: .* 1 unexpected: weight'):
    convert.from_reference({'weight': np.zeros(3, np.float32)})
