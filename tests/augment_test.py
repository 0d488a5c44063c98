import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import labels
from jaxface.augment import Augment, flip, to_float


@pytest.fixture
def batch():
  rng = np.random.default_rng(0)
  label = rng.integers(0, 19, (6, 10, 12), np.uint8)
  # Picture and mask show the label, so that whatever moves one must move the others.
  image = np.repeat(label[..., None], 3, axis=-1) * np.float32(1 / 20)
  return {'image': image, 'mask': label[..., None] * np.float32(1 / 20), 'label': label}


def _keys(count):
  return jax.random.split(jax.random.key(3), count)


def test_nothing_changes_by_default(batch):
  out = Augment()(batch, _keys(6))
  for name, value in batch.items():
    np.testing.assert_array_equal(out[name], value)


def test_flip_swaps_left_and_right_labels():
  left, right = labels.index('l_eye'), labels.index('r_eye')
  label = jnp.zeros((4, 6), jnp.uint8).at[1, 4].set(left).at[1, 1].set(right).at[2, 0].set(labels.index('nose'))
  mirrored = np.asarray(flip('label', label))
  assert mirrored[1, 1] == right
  assert mirrored[1, 4] == left
  assert mirrored[2, 5] == labels.index('nose')
  assert mirrored.dtype == np.uint8
  np.testing.assert_array_equal(flip('label', mirrored), label)


def test_flip_moves_all_fields_of_a_row_together(batch):
  out = jax.jit(Augment(flip=True))(batch, _keys(6))
  flipped = 0
  for i in range(6):
    moved = not np.array_equal(out['image'][i], batch['image'][i])
    flipped += moved
    source = slice(None, None, -1 if moved else 1)
    np.testing.assert_array_equal(out['image'][i], batch['image'][i][:, source])
    np.testing.assert_array_equal(out['mask'][i], batch['mask'][i][:, source])
    expected = batch['label'][i][:, source]
    np.testing.assert_array_equal(out['label'][i], labels.MIRROR[expected] if moved else expected)
  assert 0 < flipped < 6


def test_crop_shifts_all_fields_together(batch):
  out = jax.jit(Augment(crop_pixels=3))(batch, _keys(6))
  np.testing.assert_allclose(out['image'][..., 0], out['label'] / 20, atol=1e-6)
  np.testing.assert_allclose(out['mask'][..., 0], out['label'] / 20, atol=1e-6)
  assert not np.array_equal(out['label'], batch['label'])
  assert out['label'].dtype == np.uint8


def test_colour_leaves_labels_and_range_alone(batch):
  out = jax.jit(Augment(brightness=0.5, contrast=0.5, saturation=0.5))(batch, _keys(6))
  np.testing.assert_array_equal(out['label'], batch['label'])
  np.testing.assert_array_equal(out['mask'], batch['mask'])
  assert not np.allclose(out['image'], batch['image'])
  assert out['image'].min() >= 0
  assert out['image'].max() <= 1


def test_a_row_keeps_its_draw_in_any_batch(batch):
  augment, keys = jax.jit(Augment(flip=True, crop_pixels=2, brightness=0.2)), _keys(6)
  whole = augment(batch, keys)
  part = augment({name: value[2:4] for name, value in batch.items()}, keys[2:4])
  for name in batch:
    np.testing.assert_array_equal(part[name], whole[name][2:4])


def test_to_float():
  np.testing.assert_array_equal(to_float(jnp.array([0, 255], jnp.uint8)), [0.0, 1.0])
  np.testing.assert_array_equal(to_float(jnp.array([0.25])), [0.25])
