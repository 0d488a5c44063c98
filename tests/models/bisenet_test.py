"""The face parser against stored numbers of its PyTorch code, and as a network of other sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import convert
from jaxface.errors import UserError
from jaxface.models.bisenet import BiSeNet, normalise, widths
from tests.golden import load

SMALL = BiSeNet(**widths(1 / 16)._asdict())


@pytest.fixture(scope='module')
def small():
  """Variables and normalised pictures for `SMALL`, and its scores."""
  rng = np.random.default_rng(0)
  image = rng.standard_normal((2, 64, 64, 3)).astype(np.float32)

  def draw(leaf):
    if leaf.ndim == 1:
      return 1 + 0.1 * rng.random(leaf.shape, np.float32)
    return (rng.standard_normal(leaf.shape) / np.sqrt(leaf.size / leaf.shape[-1])).astype(np.float32)

  variables = jax.tree.map(draw, jax.eval_shape(SMALL.init, jax.random.key(0), image))
  return variables, image, jax.jit(SMALL.apply)(variables, image)


def test_prediction_matches_the_golden_at_every_stage():
  about, state, arrays = load('bisenet/eval_128')
  module, variables = convert.from_reference('bisenet', state)
  assert sum(leaf.size for leaf in jax.tree.leaves(variables['params'])) == about['config']['n_parameters']
  apply = functools.partial(module.apply, capture_intermediates=True, mutable=['intermediates'])
  logits, captured = jax.jit(lambda variables, image: apply(variables, normalise(image)))(variables, arrays['image'])
  outputs = captured['intermediates']
  resnet = outputs['context']['resnet']['__call__'][0]
  _, context_8, context_16 = outputs['context']['__call__'][0]
  ours = {'out': logits.main, 'out16': logits.aux8, 'out32': logits.aux16}
  ours = {name: head[:, ::5, ::5] for name, head in ours.items()}
  features = {'feat_cp8': context_8, 'feat_cp16': context_16, 'feat_fuse': outputs['fusion']['__call__'][0]}
  features |= {'feat8': resnet.at_8, 'feat16': resnet.at_16, 'feat32': resnet.at_32}
  ours |= {name: feature[..., ::16] for name, feature in features.items()}
  for name, value in ours.items():
    expected = arrays[name].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(value, expected, rtol=0, atol=about['tolerance']['max_abs'], err_msg=name)
  assert (np.argmax(logits.main, -1) == arrays['labels']).mean() >= 0.998


def test_prediction_does_without_the_auxiliary_heads(small):
  variables, image, logits = small
  alone = jax.jit(functools.partial(SMALL.apply, auxiliary=False))(variables, image)
  assert alone.aux8 is alone.aux16 is None
  np.testing.assert_allclose(alone.main, logits.main, atol=1e-5)


def test_bfloat16_is_close_and_keeps_float32_at_the_ends(small):
  variables, image, logits = small
  module = SMALL.clone(dtype=jnp.bfloat16)
  half = jax.jit(functools.partial(module.apply, auxiliary=False))(variables, image).main
  error = np.abs(half - logits.main).mean() / np.abs(logits.main - logits.main.mean()).mean()
  assert 0 < error < 0.1
  trained = jax.eval_shape(functools.partial(module.apply, train=True, mutable=['batch_stats']), variables, image)
  assert {leaf.dtype for leaf in jax.tree.leaves((half, trained))} == {jnp.dtype('float32')}


@pytest.mark.parametrize('size', [(32, 96), (33, 70), (187, 150)])
def test_any_size_gives_scores_of_that_size(size):
  image = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
  logits, _ = jax.eval_shape(lambda image: SMALL.init_with_output(jax.random.key(0), image), image)
  assert all(head.shape == (2, *size, 19) for head in logits)


def test_widths_are_the_published_ones_times_a_factor():
  assert BiSeNet() == BiSeNet(**widths()._asdict())
  assert widths() == ((64, 128, 256, 512), 128, 256, 64, 256, 64)
  assert widths(0.25) == ((16, 32, 64, 128), 32, 64, 16, 64, 16)
  assert widths(1e-9).context_width == 1
  hash(BiSeNet())


def test_wrong_input_says_what_is_right():
  with pytest.raises(UserError, match=r'\(1, 16, 64, 3\).*at least 32'):
    SMALL.init(jax.random.key(0), jnp.zeros((1, 16, 64, 3)))
  with pytest.raises(UserError, match='must be positive, not 0'):
    widths(0)
