"""The face of a photo: found once, shown whole and upright to a network, pasted back without a trace elsewhere."""

import cv2
import numpy as np
import pytest

from jaxface import labels
from jaxface.augment import Framing
from jaxface.face_region import EXTENT, Canvas, Square, find_face, make_canvas, square_around
from jaxface.pictures import PictureError

_CLASS = {name: labels.index(name) for name in labels.CLASSES}


def _faces(*centres, size=(90, 120), axes=(16, 22)) -> np.ndarray:
  """A label map of ellipses of skin, each with a nose, eyes and neck."""
  label = np.zeros(size, np.uint8)
  for x, y in centres:
    cv2.rectangle(label, (x - 6, y), (x + 6, y + 35), _CLASS['neck'], -1)
    cv2.ellipse(label, (x, y), axes, 0, 0, 360, _CLASS['skin'], -1)
    cv2.circle(label, (x, y), 3, _CLASS['nose'], -1)
    cv2.circle(label, (x - 7, y - 7), 2, _CLASS['r_eye'], -1)
  return label


def test_a_face_is_one_across_strands_and_speckles_are_none():
  label = _faces((60, 40))
  label[:, 66] = _CLASS['hair']
  label[80:84, 3:7] = _CLASS['skin']
  face = find_face(label, 'x')
  assert face.region[40, 50]
  assert face.region[40, 72], 'beyond the strand'
  assert not face.region[40, 66]
  assert not face.region[70:].any(), 'neither neck nor speckle'
  assert face.region[33, 53] and not face.repainted[33, 53], 'the eye'  # noqa: PT018


@pytest.mark.parametrize(
  ('label', 'message'),
  [
    (np.zeros((40, 50), np.uint8), 'x.png: no face found'),
    (_faces((60, 40), axes=(3, 4), size=(400, 400)), 'no face found'),
    (np.full((40, 50), _CLASS['l_eye'], np.uint8) * np.tri(40, 50, dtype=np.uint8), 'no face found'),
    (_faces((25, 40), (90, 40)), 'two faces found .the second is 100% of the first'),
    (np.full((40, 50), _CLASS['skin'], np.uint8), 'covers everything .it has 100%'),
  ],
  ids=['none', 'tiny', 'nothing to repaint', 'two', 'everything'],
)
def test_what_is_not_one_face(label, message):
  with pytest.raises(PictureError, match=message):
    find_face(label, 'x.png')


@pytest.mark.parametrize('centre', [(60, 40), (10, 20), (115, 60)])
def test_the_network_sees_the_whole_face_in_its_middle(centre):
  label = _faces(centre)
  region = find_face(label, 'x').region
  square = square_around(region, 80, 64)
  seen = square.label(region, 80)[8:72, 8:72]
  left, top, width, height = cv2.boundingRect(seen.astype(np.uint8))
  np.testing.assert_allclose(max(width, height), EXTENT * 64, atol=1.6)
  np.testing.assert_allclose([left + width / 2, top + height / 2], 32, atol=1.6)
  # Nothing is lost.
  np.testing.assert_allclose(seen.sum(), region.sum() * (80 / square.side) ** 2, rtol=0.02)


def test_beyond_the_photo_its_edge_is_repeated_and_the_label_map_is_empty():
  photo = np.arange(5 * 6 * 3, dtype=np.uint8).reshape(5, 6, 3)
  square = Square(-2, 3, 6)
  seen = square.picture(photo, 6)
  np.testing.assert_array_equal(seen[2:, :3], photo[:4, 3:])
  np.testing.assert_array_equal(seen[0, :3], photo[0, 3:])
  np.testing.assert_array_equal(seen[3, 3:], np.repeat(photo[1:2, 5], 3, 0))
  label = square.label(np.ones((5, 6), np.uint8), 6)
  np.testing.assert_array_equal(label, np.pad(np.ones((4, 3), np.uint8), ((2, 0), (0, 3))))


def test_photos_shrink_by_area_and_label_maps_keep_their_classes():
  rng = np.random.default_rng(0)
  photo = rng.integers(0, 256, (8, 8, 3), np.uint8)
  mean = photo.reshape(2, 4, 2, 4, 3).mean((1, 3))
  np.testing.assert_allclose(Square(0, 0, 8).picture(photo, 2), mean, atol=0.51)
  label = rng.choice([0, 17], (8, 8)).astype(np.uint8)
  assert set(np.unique(Square(0, 0, 8).label(label, 5))) <= {0, 17}


def _canvas(side: float = 55.25) -> Canvas:
  photo = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
  repainted = np.zeros((70, 90), bool)
  repainted[20:45, 25:50] = True
  return make_canvas(photo, repainted, Square(5, 12.5, side))


def test_the_border_is_soft_and_ends():
  canvas = _canvas()
  alpha = np.zeros(canvas.photo.shape[:2], np.float32)
  alpha[canvas.rows, canvas.columns] = canvas.alpha
  np.testing.assert_allclose(alpha[30, 35], 1, atol=1e-6)
  np.testing.assert_allclose(alpha[30, 24] + alpha[30, 25], 1, atol=1e-6, err_msg='half at the border itself')
  across = alpha[30, :30]
  np.testing.assert_array_equal(across[:23], 0)
  assert (np.diff(across[22:28]) >= 0).all()
  assert 0 < across[23] < 0.5
  # At the photo's edge a face does not end.
  edge = np.zeros((20, 20), bool)
  edge[:8] = True
  canvas = make_canvas(np.zeros((20, 20, 3), np.uint8), edge, Square(0, 0, 20))
  np.testing.assert_allclose(canvas.alpha[:5], 1, atol=1e-6)


@pytest.mark.parametrize('side', [55.25, 12.0])
def test_outside_the_soft_border_every_bit_is_kept(side):
  canvas = _canvas(side)
  rng = np.random.default_rng(1)
  pasted = canvas.paste(rng.random((32, 32, 3)), rng.random((32, 32, 3)))
  changed = np.zeros(canvas.photo.shape[:2], bool)
  changed[canvas.rows, canvas.columns] = canvas.alpha > 0
  np.testing.assert_array_equal(pasted[~changed], canvas.photo[~changed])
  assert (pasted[changed] != canvas.photo[changed]).mean() > 0.8
  assert pasted.dtype == np.uint8


def test_no_change_is_the_photo_itself():
  canvas = _canvas()
  own = np.random.default_rng(1).random((32, 32, 3))
  np.testing.assert_array_equal(canvas.paste(own, own), canvas.photo)
  assert (canvas.paste(own) != canvas.photo).any(), "the network's own pixels are not the photo's"


def test_detail_stays_and_the_colour_changes():
  canvas = _canvas()
  photo = canvas._replace(photo=canvas.photo // 2)
  own = np.random.default_rng(1).random((32, 32, 3)) / 2
  result = own + np.array([0.2, 0, 0.4])
  change = photo.paste(result, own)[25:40, 30:45].astype(int) - photo.photo[25:40, 30:45]
  np.testing.assert_array_equal(change, np.broadcast_to([51, 0, 102], change.shape))


@pytest.mark.parametrize('side', [180, 20])
def test_what_is_pasted_lies_where_it_was_cut(side):
  """A smooth photo through the network's size and back is the photo again, whether it was shrunk or enlarged."""
  y, x = np.mgrid[:260, :300] / 300
  photo = np.stack([200 * x, 200 * y, 100 * (1 + np.sin(4 * (x + y)))], -1).astype(np.uint8)
  whole = Square(37, 61, side)
  square = whole.middle(48, 64)
  repainted = np.zeros(photo.shape[:2], bool)
  top, left, length = (round(value) for value in square)
  repainted[top + 4 : top + length - 4, left + 4 : left + length - 4] = True
  seen = whole.picture(photo, 64)[8:56, 8:56] / 255
  pasted = make_canvas(photo, repainted, square).paste(seen)
  error = (pasted.astype(int) - photo)[repainted]
  assert np.abs(error).max() <= 2
  np.testing.assert_allclose(error.mean(0), 0, atol=0.25, err_msg='not by half a pixel')


@pytest.mark.parametrize(('width', 'fits'), [(8, True), (12, False)])
def test_a_quarter_of_the_face_is_a_second_one(width, fits):
  label = np.zeros((60, 100), np.uint8)
  label[10:50, 10:50] = label[10:50, 80 : 80 + width] = _CLASS['skin']
  if fits:
    np.testing.assert_array_equal(np.argwhere(find_face(label, 'x').region)[-1], [49, 49])
  else:
    with pytest.raises(PictureError, match='the second is 30% of the first'):
      find_face(label, 'x')


def test_how_small_and_how_large_a_face_may_be():
  label = np.zeros((100, 100), np.uint8)
  label[:6, :10] = _CLASS['skin']  # Six in a thousand.
  assert find_face(label, 'x').region.sum() == 60
  label[5, :] = label[4, :] = 0
  with pytest.raises(PictureError, match=r'no face found .at most 0\.4% of its pixels'):
    find_face(label, 'x')
  label[:88] = _CLASS['skin']
  assert find_face(label, 'x').region.sum() == 8800
  label[:92] = _CLASS['skin']
  with pytest.raises(PictureError, match='covers everything .it has 92%'):
    find_face(label, 'x')


@pytest.mark.parametrize('between', ['eye_g', 'mouth'])
def test_what_lies_in_a_face_does_not_divide_it_but_hair_does(between):
  label = np.full((60, 60), _CLASS['hair'], np.uint8)
  label[10:50, 10:50] = _CLASS['skin']
  label[25:35, 10:50] = _CLASS[between]
  face = find_face(label, 'x')
  assert face.region.sum() == 40 * 40
  assert face.repainted.sum() == 40 * 30
  label[25:35, 10:50] = _CLASS['hair']
  with pytest.raises(PictureError, match='two faces found'):
    find_face(label, 'x')


def test_what_is_brighter_than_white_is_white():
  canvas = _canvas()
  lights = canvas._replace(photo=np.full_like(canvas.photo, 250))
  own = np.full((32, 32, 3), 0.5)
  result = own + np.array([0.2, -0.2, -2.0])
  np.testing.assert_array_equal(
    np.unique(lights.paste(result, own)[25:40, 30:45].reshape(-1, 3), axis=0), [[255, 199, 0]]
  )


def test_a_label_map_shrinks_by_the_pixels_in_the_middle():
  label = np.arange(81, dtype=np.uint8).reshape(9, 9)
  np.testing.assert_array_equal(Square(0, 0, 9).label(label, 3), label[1::3, 1::3])


def test_the_middle_is_that_of_the_framing():
  photo = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
  cut = Framing(11).centred({'image': photo[None]})['image'][0]
  np.testing.assert_array_equal(Square(0, 0, 16).middle(11, 16).picture(photo, 11), cut)


def test_the_border_is_as_soft_as_the_face_is_large():
  repainted = np.zeros((100, 100), bool)
  repainted[:, :50] = True
  canvas = make_canvas(np.zeros((100, 100, 3), np.uint8), repainted, Square(-450, -450, 1000))
  # Two averages over five pixels to either side: a hundredth of what the network sees.
  across = canvas.alpha[50]
  np.testing.assert_allclose(across[:40], 1, atol=1e-6)
  assert across[40] < 0.999
  assert across[59] > 0.001
  assert not across[60:].any()


def test_what_is_enlarged_is_as_crisp_as_a_cubic_kernel_makes_it():
  photo = np.full((64, 64, 3), 100, np.uint8)
  step = np.zeros((16, 16, 3))
  step[:, 8:] = 0.2
  pasted = make_canvas(photo, np.ones((64, 64), bool), Square(0, 0, 64)).paste(step, np.zeros_like(step))
  # A linear kernel stays between the two.
  assert pasted.min() < 99
  assert pasted.max() > 152


@pytest.mark.parametrize(('gap', 'divides'), [(4, False), (5, True)])
def test_a_gap_divides_a_face_from_a_twenty_fifth_of_its_side_on(gap, divides):
  label = np.zeros((140, 140), np.uint8)
  label[20:120, 20 : 120 + gap] = _CLASS['skin']
  label[20:120, 70 : 70 + gap] = _CLASS['hair']
  if divides:
    with pytest.raises(PictureError, match='two faces found'):
      find_face(label, 'x')
  else:
    assert find_face(label, 'x').region.sum() == 100 * 100
