import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import labels
from jaxface.augment import Augment, Framing, Zoom, flip, scaled_crop, to_float, to_signed, to_unit
from jaxface.errors import UserError


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
  np.testing.assert_array_equal(to_signed(jnp.array([0, 255], jnp.uint8)), [-1.0, 1.0])
  np.testing.assert_array_equal(to_unit(jnp.array([-1.5, -1.0, 0.0, 1.0, 1.5])), [0, 0, 0.5, 1, 1])


@pytest.mark.parametrize('what', ['brightness', 'contrast', 'saturation'])
def test_colour_changes_by_as_much_as_is_said(what):
  image = np.random.default_rng(1).uniform(0.4, 0.6, (200, 4, 4, 3)).astype(np.float32)
  after = np.asarray(jax.jit(Augment(**{what: 0.25}))({'image': image}, _keys(200))['image'])
  spread = lambda x: x.std((1, 2, 3)) if what == 'contrast' else (x.max(3) - x.min(3)).mean((1, 2))
  # Of each row what was added, or the factor.
  found = (after - image).mean((1, 2, 3)) if what == 'brightness' else spread(after) / spread(image) - 1
  # Within the range and up to both its ends.
  assert np.abs(found).max() <= 0.25 + 1e-3
  assert found.min() < -0.2
  assert found.max() > 0.2


def _places(rows, size):
  """Pictures that show where a pixel is: row and column in red and green, and their cells as labels."""
  y, x = np.mgrid[:size, :size]
  image = np.stack([(y + 0.5) / size, (x + 0.5) / size, 0 * x], -1).astype(np.float32)
  label = (y // 4 * 4 + x // 4).astype(np.uint8)  # 0..15 for 16 pixels.
  return {'image': np.stack([image] * rows), 'label': np.stack([label] * rows)}


def test_zoom_shows_a_square_of_any_place_and_of_the_sizes_asked_for():
  size, rows = 16, 300
  out = jax.jit(Zoom(least=0.5))(_places(rows, size), _keys(rows))
  inner = np.asarray(out['image'])[:, 2:-2, 2:-2]  # At its rim an enlarged picture is flat.
  share = (inner[:, -1, 0, 0] - inner[:, 0, 0, 0]) * size / (inner.shape[1] - 1)
  assert 0.5 - 1e-3 <= share.min() < 0.53
  assert 0.95 < share.max() <= 1 + 1e-3
  for channel, line in ((0, inner[:, :, 5, 0]), (1, inner[:, 5, :, 1])):
    # Where the square begins, as a share of the room that there is.
    begin = line[:, 0] - 2.5 / size * share
    free = share < 0.9
    room = (begin / (1 - share))[free]
    assert -0.01 < room.min() < 0.05, channel
    assert 0.95 < room.max() < 1.01, channel
  # A label is that of the place the picture shows there.
  y, x = (np.floor(inner[..., c] * 4 - 1e-4).astype(int) for c in (0, 1))
  edge = np.abs(inner[..., :2] * 4 - np.round(inner[..., :2] * 4)).min(-1) < 0.02
  np.testing.assert_array_equal((y * 4 + x)[~edge], np.asarray(out['label'])[:, 2:-2, 2:-2][~edge])


def test_zoom_shows_no_less_than_it_is_told():
  inner = np.asarray(jax.jit(Zoom(least=0.8))(_places(300, 16), _keys(300))['image'])[:, 2:-2, 2:-2]
  share = (inner[:, -1, 0, 0] - inner[:, 0, 0, 0]) * 16 / (inner.shape[1] - 1)
  assert 0.8 - 1e-3 <= share.min() < 0.82


def test_zoom_mirrors_too():
  batch = _places(40, 16)
  mirrored = np.asarray(jax.jit(Zoom(flip=True))(batch, _keys(40))['image'])[:, 0, 0, 1] > 0.5
  assert 0 < mirrored.sum() < 40
  zoomed = np.asarray(jax.jit(Zoom(least=0.5, flip=True))(batch, _keys(40))['image'])
  assert 0 < (zoomed[:, 8, 2, 1] > zoomed[:, 8, -3, 1]).sum() < 40


def test_framing_cuts_the_middle_or_anywhere():
  batch, keys = _places(200, 16), _keys(200)
  middle = Framing(12).centred(batch)
  for name, value in batch.items():
    np.testing.assert_array_equal(middle[name], value[:, 2:14, 2:14])
  jax.tree.map(np.testing.assert_array_equal, jax.jit(Framing(12).drawn)(batch, keys), middle)
  drawn = jax.jit(Framing(12, random_crop=True).drawn)(batch, keys)
  y, x = (np.round(np.asarray(drawn['image'])[:, 0, 0, c] * 16 - 0.5).astype(int) for c in (0, 1))
  assert set(y) == set(x) == set(range(5))  # The first place and the last among them.
  assert len(set(zip(y, x, strict=True))) == 25
  for i in range(20):
    np.testing.assert_array_equal(drawn['label'][i], batch['label'][i, y[i] : y[i] + 12, x[i] : x[i] + 12])
  flipped = jax.jit(Framing(12, flip=True).drawn)(batch, keys)
  turned = np.asarray(flipped['image'])[:, 0, 0, 1] > 0.5
  assert 60 < turned.sum() < 140
  np.testing.assert_array_equal(flipped['label'][turned], labels.MIRROR[middle['label'][turned][:, :, ::-1]])


def test_a_shift_repeats_the_edge():
  label = np.full((40, 8, 8), 7, np.uint8)
  label[:, 4:] = 9
  batch = {'label': label, 'image': np.repeat(label[..., None], 3, -1) * np.float32(1 / 20)}
  out = jax.jit(Augment(crop_pixels=6))(batch, _keys(40))
  rows = np.asarray(out['label'])[:, :, 0]
  # Nothing but the two halves, one above the other: no black border, which would be background, and no mirror image.
  assert set(np.unique(rows)) == {7, 9}
  assert (np.diff(rows.astype(int), axis=1) >= 0).all()
  assert len(np.unique((rows == 7).sum(1))) > 5
  np.testing.assert_allclose(out['image'][..., 0], out['label'] / 20, atol=1e-6)


def test_a_picture_that_shrinks_is_averaged_and_not_overshot():
  stripes = jnp.zeros((32, 32, 3)).at[:, ::4].set(1)
  crop, _ = scaled_crop(stripes, jnp.zeros((32, 32), jnp.uint8), jnp.float32(0.25), jnp.zeros(2), 8)
  # Four pixels are one, of which the two in the middle are none of the stripe; at the edge a window is cut.
  np.testing.assert_allclose(crop[:, 1:-1], 0.25, atol=1e-5)
  edge = jnp.zeros((8, 8, 3)).at[:, 4:].set(0.5)
  crop, _ = scaled_crop(edge, jnp.zeros((8, 8), jnp.uint8), jnp.float32(2), jnp.zeros(2), 16)
  np.testing.assert_allclose(crop[3, :, 0], [0] * 7 + [0.125, 0.375] + [0.5] * 7, atol=1e-6)


def test_of_an_odd_margin_the_smaller_half_comes_first():
  # 65 pixels of 321 leave 32 above the square of 256, as PIL's centre crop has it; training and evaluation agree.
  batch = _places(2, 16)
  for cut in (Framing(11).centred(batch), Framing(11).drawn(batch, _keys(2))):
    np.testing.assert_array_equal(cut['image'], batch['image'][:, 2:13, 2:13])


def test_a_zoomed_picture_is_cubic():
  image = np.random.default_rng(0).uniform(0.3, 0.7, (40, 16, 16, 3)).astype(np.float32)
  batch = {'image': jnp.asarray(image), 'label': jnp.zeros((40, 16, 16), jnp.uint8)}
  zoomed = np.asarray(jax.jit(Zoom(least=0.5))(batch, _keys(40))['image'])
  # A linear kernel never leaves what it weighs.
  assert zoomed.max() > image.max()
  assert zoomed.min() < image.min()


@pytest.mark.parametrize('name', ['crop_pixels', 'brightness', 'contrast', 'saturation'])
def test_negative_strengths_are_refused(name):
  with pytest.raises(UserError, match=f'augment.{name}=-1'):
    Augment(**{name: -1})
