"""Label maps that a parser has made, kept on the disk until their dataset is complete."""

import contextlib
import sqlite3
from collections.abc import Iterable
from pathlib import Path


class LabelCache:
  """Label maps as PNG, by the key of their picture, in one SQLite file: a run that was stopped goes on with them.

  Args:
    path: the file; made if missing.
    made_by: identity of the parser. A file of another one is begun anew, and so is one that is damaged.
  """

  def __init__(self, path: Path, made_by: str):
    self._path = path
    try:
      self._open(made_by)
    except sqlite3.DatabaseError:
      self.delete()
      self._open(made_by)

  def _open(self, made_by: str) -> None:
    # One dataset has one writer, so SQLite need not lock, which network file systems are bad at. The threads that
    # may call are the writer's own, one at a time.
    self._database = sqlite3.connect(f'{self._path.absolute().as_uri()}?nolock=1', uri=True, check_same_thread=False)
    with self._database as database:
      # Or damage would stop a run in the middle, and every next one. To read all takes seconds, to parse it hours.
      damage = database.execute('PRAGMA quick_check(1)').fetchone()
      if damage != ('ok',):
        raise sqlite3.DatabaseError(*damage)
      database.execute('CREATE TABLE IF NOT EXISTS made_by (identity TEXT)')
      database.execute('CREATE TABLE IF NOT EXISTS label_maps (key TEXT PRIMARY KEY, png BLOB)')
      if database.execute('SELECT identity FROM made_by').fetchall() != [(made_by,)]:
        database.execute('DELETE FROM made_by')
        database.execute('DELETE FROM label_maps')
        database.execute('INSERT INTO made_by VALUES (?)', (made_by,))

  def __len__(self) -> int:
    return self._database.execute('SELECT COUNT(*) FROM label_maps').fetchone()[0]

  def get(self, key: str) -> bytes | None:
    """The label map of a picture, None where it is not made yet."""
    row = self._database.execute('SELECT png FROM label_maps WHERE key = ?', (key,)).fetchone()
    return row[0] if row else None

  def put(self, made: Iterable[tuple[str, bytes]]) -> None:
    """Adds (key, PNG) pairs, all of them or, where the process dies, none."""
    with self._database as database:
      database.executemany('INSERT OR REPLACE INTO label_maps VALUES (?, ?)', made)

  def close(self) -> None:
    """Keeps what there is for the next run, a file only if there is any."""
    empty = not len(self)
    self._database.close()
    if empty:
      self.delete()

  def delete(self) -> None:
    """Removes the file."""
    with contextlib.suppress(AttributeError):  # Where opening it failed.
      self._database.close()
    for path in (self._path, self._path.with_name(f'{self._path.name}-journal')):
      path.unlink(missing_ok=True)
