"""Content input and texture against stored numbers, and erosion and the rest from their definitions."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxface import labels, resize
from jaxface.errors import UserError
from jaxface.texture import RECIPES, TextureRecipe, content_input, keep_mask, texture
from tests.golden import load

_REAL = Path(__file__).parents[2] / 'shared' / 'goldens' / 'ipmnet' / 'texture_real_crop.npz'

SKIN, NOSE, EYE, HAIR = (labels.index(name) for name in ('skin', 'nose', 'l_eye', 'hair'))


def _texture(image, label, recipe):
  """In grey levels, [H, W]."""
  run = jax.jit(texture, static_argnums=2)
  return np.asarray(run(image[None], label[None].astype(np.uint8), recipe))[0, ..., 0] * 255


def _labels(face, region, features):
  return np.where(face, np.where(features, NOSE, SKIN), np.where(region, EYE, 0))


@pytest.mark.parametrize(
  ('recipe', 'name'), [('makeup', 'texture_a'), ('non_makeup', 'texture_b'), ('published', 'contract')]
)
def test_texture_matches_the_golden(recipe, name):
  _, _, arrays = load('ipmnet/texture_made_up')
  label = _labels(arrays['mask'] == 0, arrays['region'] > 0, arrays['features'] > 0)
  np.testing.assert_allclose(_texture(arrays['image'], label, RECIPES[recipe]), arrays[name], atol=1e-3)


def test_a_resized_picture_matches_the_golden():
  _, _, arrays = load('ipmnet/texture_made_up')
  resized = resize.bicubic_levels(arrays['image'][None], arrays['resized'].shape[:2])[0]
  np.testing.assert_array_equal(resized, arrays['resized'])
  enlarged = resize.bicubic_weights(3, 9)
  np.testing.assert_allclose(enlarged.sum(1), 1, rtol=1e-6)
  # Thirds of a pixel to the left and right of each centre: Keys's kernel at 1/3, 2/3, 4/3 and 5/3.
  np.testing.assert_allclose(enlarged[4], [0, 1, 0], atol=1e-7)
  np.testing.assert_allclose(enlarged[5], [-2 / 27, 7 / 9, 8 / 27], atol=1e-6)
  np.testing.assert_array_equal(resize.bicubic_levels(np.full((1, 4, 4, 1), 300.0), (2, 2)), 255)


@pytest.mark.parametrize(('recipe', 'name'), [('makeup', 'stored'), ('published', 'contract')])
def test_texture_matches_a_stored_one_of_the_public_code(recipe, name):
  if not _REAL.exists():
    pytest.skip(f'the crop of a real photograph is not at {_REAL}')
  with np.load(_REAL) as arrays:
    face = arrays['mask'] == 0
    image = np.repeat(arrays['blue'][..., None], 3, -1)
    ours = _texture(image, _labels(face, np.ones_like(face), arrays['features'] > 0), RECIPES[recipe])
    inner = np.s_[6:-6, 6:-6]
    np.testing.assert_allclose(ours[inner], arrays[name][inner], atol=1e-3)


def test_floats_are_rounded_and_bytes_are_taken_as_they_are():
  _, _, arrays = load('ipmnet/texture_made_up')
  image = arrays['resized'][:40]
  label = np.full(image.shape[:2], SKIN)
  run = functools.partial(_texture, label=label, recipe=RECIPES['makeup'])
  expected = run(image)
  assert expected.max() > 20
  np.testing.assert_array_equal(run(image.astype(np.uint8)), expected)
  np.testing.assert_array_equal(run(image / np.float32(255) * 255), expected)


def test_erosion_is_an_octagon_that_hair_stops_and_eyes_do_not():
  """On a chequered face every second pixel has texture; which of them are left shows the eroded region."""
  rows, columns = np.mgrid[:40, :50]
  image = np.repeat(((rows + columns) % 2 * 200.0)[..., None], 3, -1)
  label = np.full((40, 50), SKIN)
  label[20, 15], label[20, 40] = HAIR, EYE
  eroded = _texture(image, label, TextureRecipe(erosion=(2, 2)))
  whole = _texture(image, label, TextureRecipe())
  dy, dx = np.abs(rows - 20), np.abs(columns - 15)
  octagon = (dy <= 4) & (dx <= 4) & (dy + dx <= 6)
  np.testing.assert_array_equal(eroded, np.where(octagon, 0, whole))
  assert (whole > 0).sum() > 900


def test_gains_tell_skin_from_features_and_saturate():
  rng = np.random.default_rng(0)
  image, label = rng.integers(0, 256, (12, 20, 3)), np.full((12, 20), SKIN)
  label[:, 10:] = labels.index('u_lip')
  plain, raised = (_texture(image, label, TextureRecipe(gain_skin=a, gain_features=b)) for a, b in ((1, 1), (2, 5)))
  np.testing.assert_allclose(raised, np.minimum(plain * np.where(label == SKIN, 2, 5), 255), atol=1e-3)
  assert raised.max() == 255


def test_what_is_kept_is_told_by_name():
  label = np.arange(256).reshape(1, 16, 16)
  repainted = {'skin', 'nose', 'l_brow', 'r_brow', 'u_lip', 'l_lip'}
  expected = [labels.CLASSES[i] not in repainted if i < labels.NUM_CLASSES else True for i in range(256)]
  mask = keep_mask(label)
  assert mask.shape == (1, 16, 16, 1)
  np.testing.assert_array_equal(np.ravel(mask), expected)


def test_content_input_keeps_fractions_as_the_public_code_does():
  image = np.full((2, 1, 3, 3), 0.5, np.float32)
  mask = np.broadcast_to(np.array([0, 0.5, 1], np.float32)[:, None], (2, 1, 3, 1))
  plane = np.full((2, 1, 3, 1), 0.25, np.float32)
  result = content_input(image, mask, plane, np.array([1.0, 0.8]))
  np.testing.assert_allclose(result[0, 0, :, 0], [-0.5, 0.375 - 0.5, 0], atol=1e-6)
  np.testing.assert_allclose(result[1, 0, :, 2], [-0.4, 0.375 - 0.4, 0.5 - 0.4], atol=1e-6)
  np.testing.assert_allclose(content_input(image, mask, plane, 0.8)[0], result[1], atol=1e-6)


def test_recipes_scale_with_the_picture():
  recipe = RECIPES['makeup']
  assert recipe.scaled(321) == recipe
  assert recipe.scaled(642) == TextureRecipe(20, 4.0, (4, 4), 3, 6, smooth=True)
  assert recipe.scaled(96) == TextureRecipe(4, 0.8, (1, 1), 3, 6, smooth=False)
  assert recipe.scaled(16).erosion == (1, 1)
  assert RECIPES['published'].scaled(256).kernel_size == 8


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: TextureRecipe(kernel_size=1), 'kernel_size=1'),
    (lambda: TextureRecipe(sigma=0), 'sigma=0'),
    (lambda: TextureRecipe(erosion=(1, -1)), r'erosion=\(1, -1\); give two radii'),
    (lambda: TextureRecipe(gain_skin=-1), 'gain_skin=-1'),
    (lambda: TextureRecipe().scaled(0), '0 pixels'),
  ],
)
def test_wrong_recipes_say_what_is_right(make, message):
  with pytest.raises(UserError, match=message):
    make()


@pytest.mark.parametrize('name', ['nose', 'l_brow', 'r_brow', 'u_lip', 'l_lip', 'l_eye', 'r_eye', 'mouth'])
def test_every_feature_is_raised_and_no_hole_is_a_border(name):
  rows, columns = np.mgrid[:40, :50]
  image = np.repeat(((rows + columns) % 2 * 20.0)[..., None], 3, -1)
  label = np.full((40, 50), SKIN)
  plain = _texture(image, label, TextureRecipe(gain_features=3))
  label[18:22, 20:24] = labels.index(name)
  found = _texture(image, label, TextureRecipe(erosion=(2, 2), gain_features=3))
  inside, apart = np.zeros(label.shape, bool), np.ones(label.shape, bool)
  inside[18:22, 20:24], apart[12:28, 14:30] = True, False
  hole = name in ('l_eye', 'r_eye', 'mouth')
  np.testing.assert_allclose(found[inside], plain[inside] * (0 if hole else 3), atol=1e-3)
  np.testing.assert_allclose(found[apart], plain[apart], atol=1e-3)
  assert (found[~apart & ~inside] > 0).mean() > 0.4  # Eroded, there would be none of it near the hole.


def test_a_small_sigma_stays_small():
  assert TextureRecipe(sigma=0.5).scaled(96).sigma == 0.5


def test_types_are_not_mixed():
  rng = np.random.default_rng(0)
  image, label = rng.uniform(size=(1, 64, 64, 3)).astype(np.float32), rng.integers(0, 19, (1, 64, 64)).astype(np.uint8)
  with jax.numpy_dtype_promotion('strict'):
    assert np.isfinite(texture(255 * image, label, next(iter(RECIPES.values())))).all()
