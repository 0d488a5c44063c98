"""Regions, histogram matching and its loss against stored numbers of BeautyGAN's code, and as they should behave."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import histogram_matching, labels
from jaxface.histogram_matching import has_eyes, histogram_loss, match_histogram, regions
from tests.golden import load

PUBLIC = {'lip': 'lip', 'skin': 'skin', 'left_eye': 'eye_left', 'right_eye': 'eye_right'}

# Losses [R, B] of several regions at once, and the gradient of the first one's sum.
_losses = jax.jit(jax.vmap(histogram_loss, in_axes=(None, None, 0, 0)))
_gradient = jax.jit(jax.grad(lambda *inputs: histogram_loss(*inputs).sum()))
_match = jax.jit(match_histogram)


@pytest.fixture(scope='module')
def golden():
  """The stored case in this project's layout, with regions [R, 1, H, W] computed here."""
  about, _, arrays = load('beautygan/histogram_matching')
  case = {name: arrays[name].transpose(0, 2, 3, 1) for name in ('generated', 'reference', 'lip_grad')}
  for face in 'ab':
    label = labels.lookup_table('makeup_transfer')[arrays[f'labels_{face}'][:, 0].astype(int)]
    case[face] = jax.jit(regions)(label)
  return about, arrays, case


def test_regions_match_the_golden(golden):
  _, arrays, case = golden
  for name, public in PUBLIC.items():
    for face in 'ab':
      np.testing.assert_array_equal(case[face][name], arrays[f'{public}_{face}'][:, 0], err_msg=f'{name} {face}')


def test_losses_and_gradient_match_the_golden(golden):
  _, arrays, case = golden
  a, b = (jnp.stack([case[face][name] for name in PUBLIC]) for face in 'ab')
  ours = _losses(case['generated'], case['reference'], a, b)
  assert ours.shape == (4, 1)
  np.testing.assert_allclose(ours[:, 0], [arrays[f'{public}_loss'] for public in PUBLIC.values()], rtol=1e-4)
  gradient = _gradient(case['generated'], case['reference'], a[0], b[0])
  np.testing.assert_allclose(gradient, case['lip_grad'], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize('name', PUBLIC)
def test_matched_pictures_match_the_golden_everywhere(golden, name):
  _, arrays, case = golden
  generated, reference = (np.clip((case[n] + 1) / 2, 0, 1) * np.float32(255) for n in ('generated', 'reference'))
  ours = _match(generated, case['a'][name], reference, case['b'][name])
  np.testing.assert_array_equal(ours[0].transpose(2, 0, 1), arrays[f'{PUBLIC[name]}_matched'])


@pytest.fixture(scope='module')
def pictures():
  """Three pictures of 64 pixels, two halves of a picture as regions, all in levels."""
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (3, 64, 64, 3)).astype(np.float32)
  reference = rng.integers(60, 140, (3, 64, 64, 3)).astype(np.float32)
  top = np.zeros((3, 64, 64), np.float32)
  top[:, :32] = 1
  return image, reference, top, 1 - top


def test_the_region_takes_the_references_distribution(pictures):
  image, reference, top, bottom = pictures
  matched = _match(image, top, reference, bottom)
  assert (matched[:, 32:] == 0).all()
  for percent in (5, 25, 50, 75, 95):
    wanted = np.percentile(reference[:, 32:], percent, (1, 2))
    np.testing.assert_allclose(np.percentile(matched[:, :32], percent, (1, 2)), wanted, atol=3)


def test_a_row_does_not_depend_on_the_others(pictures):
  image, reference, top, bottom = pictures
  together = _match(image, top, reference, bottom)
  alone = _match(image[1:2], top[1:2], reference[1:2], bottom[1:2])
  np.testing.assert_array_equal(together[1:2], alone)


def test_matching_a_region_with_itself_changes_nothing(pictures):
  image, _, top, _ = pictures
  np.testing.assert_array_equal(_match(image, top, image, top), image * top[..., None])


def test_an_empty_region_costs_nothing_and_gives_no_gradient(pictures):
  image, reference, top, _ = pictures
  image, reference, nothing = image / 127.5 - 1 + 0.001, reference / 127.5 - 1, np.zeros_like(top)
  half = top.copy()
  half[1] = 0
  for mask, other, costs in ((top, nothing, [0, 0, 0]), (nothing, top, [0, 0, 0]), (top, half, [1, 0, 1])):
    loss = _losses(image, reference, mask[None], other[None])[0]
    np.testing.assert_array_equal(loss > 1, np.array(costs, bool))
    gradient = _gradient(image, reference, mask, other)
    np.testing.assert_array_equal((gradient != 0).any((1, 2, 3)), np.array(costs, bool))
    assert np.isfinite(gradient).all()


def _face(size=40):
  """A label map of skin with a nose, a neck, lips, and an eye in the top left corner."""
  label = np.full((1, size, size), labels.index('skin'), np.uint8)
  label[:, 20:24, 20:22] = labels.index('nose')
  label[:, 2:4, 1:5] = labels.index('l_eye')
  label[:, 0, :8] = labels.index('hair')
  label[:, 30, 10:20] = labels.index('u_lip')
  label[:, 32, 10:20] = labels.index('l_lip')
  label[:, 31, 10:20] = labels.index('mouth')
  label[:, 36:] = labels.index('neck')
  return label


def test_regions_are_cut_by_the_picture_and_not_broken_by_it():
  label = _face()
  found = jax.jit(functools.partial(regions, margin=3))(label)
  expected = np.zeros((40, 40), np.float32)
  expected[1:7, :8] = 1  # Rows 2 - 3 = -1 to 3 + 3, columns 1 - 3 = -2 to 4 + 3; row 0 is hair.
  expected[2:4, 1:5] = 0
  np.testing.assert_array_equal(found['left_eye'][0], expected)
  assert found['right_eye'].sum() == 0
  assert found['lip'].sum() == 20
  assert (found['skin'][0, 36:] == 1).all()
  without = jax.jit(functools.partial(regions, neck=False))(label)['skin']
  assert (without[0, 36:] == 0).all()
  np.testing.assert_array_equal(without[0, :36], found['skin'][0, :36])


def test_both_eyes_must_be_open():
  one = _face()
  both = one.copy()
  both[:, 10, 30] = labels.index('r_eye')
  np.testing.assert_array_equal(jax.jit(has_eyes)(np.concatenate([one, both])), [False, True])


def test_products_count_and_look_up_as_the_plain_way_does():
  rng = np.random.default_rng(0)
  level = rng.integers(0, 256, (2, 3, 500), np.int32)
  mask = rng.integers(0, 2, level.shape).astype(np.float32)
  table = rng.integers(0, 256, (2, 3, 256)).astype(np.float32)
  both = jax.jit(
    lambda level, mask, table: [
      (histogram_matching._count(level, mask), histogram_matching._look_up(table, level)),
      (histogram_matching._count_by_product(level, mask), histogram_matching._look_up_by_product(table, level)),
    ]
  )
  plain, products = both(level, mask, table)
  jax.tree.map(np.testing.assert_array_equal, plain, products)
  assert plain[0][1, 2, 7] == mask[1, 2][level[1, 2] == 7].sum()


def test_levels_below_all_of_the_references_stay():
  """Half of the reference is black: of what is darker than the median nothing has as small a share."""
  image = np.repeat(np.arange(1, 101, dtype=np.float32).reshape(1, 10, 10, 1), 3, -1)
  reference = np.where(image <= 50, 0, image + 100)
  ones = np.ones((1, 10, 10), np.float32)
  matched = np.asarray(_match(image, ones, reference, ones))
  np.testing.assert_array_equal(matched[image < 50], image[image < 50])
  np.testing.assert_allclose(matched[image > 51], image[image > 51] + 100, atol=1)
