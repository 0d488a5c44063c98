"""Photos are found once, and their label maps are read in whatever order their classes are."""

import numpy as np
import pytest

from jaxface import labels, photos, pictures


@pytest.mark.parametrize('order', labels.ORDERS)
def test_label_maps_of_every_order_come_in_the_projects(tmp_path, order):
  classes = labels.ORDERS[order]
  pictures.write_picture(tmp_path / 'a.png', np.arange(len(classes), dtype=np.uint8)[None])
  expected = [labels.CLASSES.index(name) for name in classes]
  np.testing.assert_array_equal(photos.read_label_map(tmp_path / 'a.png', order), [expected])
  pictures.write_picture(tmp_path / 'a.jpg', np.zeros((2, 2 * len(classes), 3), np.uint8))
  (photo,) = photos.Photos([tmp_path / 'a.jpg'], {tmp_path / 'a.jpg': tmp_path / 'a.png'}, order)
  # Of another size than the photo, which it is fitted to.
  np.testing.assert_array_equal(photo.label, np.repeat([expected], 2, 0).repeat(2, 1))


def test_a_photo_that_is_named_twice_comes_once_where_it_was_named_first(tmp_path):
  for name in ('a.png', 'b.png', 'out/c.png'):
    pictures.write_picture(tmp_path / name, np.zeros((4, 4, 3), np.uint8))
  asked = [tmp_path / 'b.png', tmp_path]
  names = lambda paths: [path.name for path in paths]
  assert names(photos.find(asked, tmp_path / 'out')) == ['b.png', 'a.png']
  assert names(photos.find_each(asked, tmp_path / 'out')) == ['b.png', 'a.png', 'b.png']
