"""Where a file can be written is known before the work for it, and looking leaves nothing behind."""

from pathlib import Path

import pytest

from jaxface.errors import UserError
from jaxface.folders import check_writable


def test_the_folder_is_made_and_a_file_stays_as_it_is(tmp_path):
  check_writable(tmp_path / 'new/folder/a.json')
  assert not list((tmp_path / 'new/folder').iterdir())
  (tmp_path / 'a.json').write_text('old')
  check_writable(tmp_path / 'a.json')
  assert (tmp_path / 'a.json').read_text() == 'old'
  assert sorted(path.name for path in tmp_path.iterdir()) == ['a.json', 'new']


@pytest.mark.parametrize(
  ('place', 'why'),
  [
    ('folder', 'it is a folder'),
    ('file/a.json', 'file is a file'),
    ('file/below/a.json', 'Not a directory'),
    ('/proc/new/a.json', 'No such file or directory'),
    # Root may write to it, by its mode.
    ('/proc/a.json', 'No such file or directory'),
    ('/dev/null', 'it is no file but a device'),
    ('a' * 250, 'File name too long'),
    ('a' * 300, 'File name too long'),
    (f'{"a" * 300}/a.json', 'File name too long'),
  ],
)
def test_what_cannot_be_written_is_told_in_one_line(tmp_path, place, why):
  (tmp_path / 'folder').mkdir()
  (tmp_path / 'file').touch()
  path = tmp_path / place
  with pytest.raises(UserError) as error:
    check_writable(path, '--results')
  assert str(error.value).startswith(f'cannot write {path}: ')
  assert str(error.value).endswith(f'{why}; choose another --results')
  assert sorted(path.name for path in tmp_path.iterdir()) == ['file', 'folder']
  assert not Path('/dev/null').is_file()
