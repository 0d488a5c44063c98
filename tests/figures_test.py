import numpy as np

from jaxface import figures


def test_tile_puts_pictures_where_they_belong():
  black, white = np.zeros((96, 98, 3)), np.ones((96, 98, 1))
  sheet = figures.tile([[black, white], [None, black]], gap=1)
  assert sheet.shape == (2 * 97 + 1, 2 * 99 + 1, 3)
  assert sheet.dtype == np.uint8
  assert (sheet[1:97, 1:99] == 0).all()
  assert (sheet[1:97, 100:198] == 255).all()
  assert (sheet[98:194, 1:99] == 255).all()
  assert (sheet[98:194, 100:198] == 0).all()


def test_small_pictures_are_enlarged_by_whole_pixels():
  picture = np.arange(48 * 48 * 3, dtype=np.uint8).reshape(48, 48, 3)
  sheet = figures.tile([[picture]], gap=0)
  assert sheet.shape == (96, 96, 3)
  np.testing.assert_array_equal(sheet[1::2, ::2], picture)


def test_to_uint8_rounds_and_clips():
  np.testing.assert_array_equal(figures.to_uint8(np.array([-0.2, 0.5, 1.2]).reshape(1, 1, 3)).ravel(), [0, 128, 255])


def test_square_sheet_of_five_is_three_by_two():
  assert figures.square_sheet(np.zeros((5, 96, 96, 3))).shape == (2 * 98 + 2, 3 * 98 + 2, 3)


def test_titles_stand_above_their_columns():
  sheet = figures.titled_columns({'input': np.ones((2, 96, 96, 3)), 'a long name of a column': np.ones((2, 96, 96, 3))})
  titles = sheet[: -2 * 98 - 2]
  assert (titles[:, :100] < 128).any()
  assert (titles[:, 100:] < 128).any()
  assert (sheet[len(titles) :] == 255).all()


def test_losses_are_plotted(tmp_path):
  records = [{'step': s, 'train/loss': 1 / s, 'train/kl': 0.1} for s in (1, 2, 3)]
  records.append({'step': 3, 'validation/loss': 0.5})
  figures.plot_losses(tmp_path / 'losses.png', records)
  assert (tmp_path / 'losses.png').stat().st_size > 5000
  figures.plot_losses(tmp_path / 'none.png', [])
  assert not (tmp_path / 'none.png').exists()


def test_a_sheet_has_no_more_rows_than_asked_for_and_none_that_a_column_lacks():
  columns = {'a': np.zeros((5, 96, 96, 3)), 'b': np.zeros((4, 96, 96, 1))}
  assert figures.titled_columns(columns, max_rows=2).shape[0] == 22 + 2 * 98 + 2
  assert figures.titled_columns(columns).shape[0] == 22 + 4 * 98 + 2
