import numpy as np

from jaxface import figures


def test_tile_puts_pictures_where_they_belong():
  black, white = np.zeros((4, 6, 3)), np.ones((4, 6, 1))
  sheet = figures.tile([[black, white], [None, black]], gap=1)
  assert sheet.shape == (2 * 5 + 1, 2 * 7 + 1, 3)
  assert sheet.dtype == np.uint8
  assert (sheet[1:5, 1:7] == 0).all()
  assert (sheet[1:5, 8:14] == 255).all()
  assert (sheet[6:10, 1:7] == 255).all()
  assert (sheet[6:10, 8:14] == 0).all()


def test_to_uint8_rounds_and_clips():
  np.testing.assert_array_equal(figures.to_uint8(np.array([-0.2, 0.5, 1.2]).reshape(1, 1, 3)).ravel(), [0, 128, 255])


def test_square_sheet_of_five_is_three_by_two():
  assert figures.square_sheet(np.zeros((5, 4, 4, 3))).shape == (2 * 6 + 2, 3 * 6 + 2, 3)


def test_titles_stand_above_their_columns():
  sheet = figures.titled_columns({'input': np.ones((2, 40, 40, 3)), 'a long name of a column': np.ones((2, 40, 40, 3))})
  titles = sheet[: -2 * 42 - 2]
  assert (titles[:, :44] < 128).any()
  assert (titles[:, 44:] < 128).any()
  assert (sheet[len(titles) :] == 255).all()


def test_losses_are_plotted(tmp_path):
  records = [{'step': s, 'train/loss': 1 / s, 'train/kl': 0.1} for s in (1, 2, 3)]
  records.append({'step': 3, 'validation/loss': 0.5})
  figures.plot_losses(tmp_path / 'losses.png', records)
  assert (tmp_path / 'losses.png').stat().st_size > 5000
  figures.plot_losses(tmp_path / 'none.png', [])
  assert not (tmp_path / 'none.png').exists()
