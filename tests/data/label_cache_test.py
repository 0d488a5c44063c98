"""Parsed label maps outlive the run that made them, and serve nobody else."""

import contextlib
import os
import signal
import subprocess
import sys

from jaxface_data.label_cache import LabelCache

MADE_BY = 'parser a'


def test_what_was_put_is_there_after_opening_again(tmp_path):
  cache = LabelCache(tmp_path / 'a b#c.prepare', MADE_BY)
  cache.put([('1.png', b'one'), ('2.png', b'two')])
  assert cache.get('1.png') == b'one'
  assert cache.get('3.png') is None
  cache.close()
  assert [path.name for path in tmp_path.iterdir()] == ['a b#c.prepare']
  with contextlib.closing(LabelCache(tmp_path / 'a b#c.prepare', MADE_BY)) as again:
    assert (len(again), again.get('2.png')) == (2, b'two')
    again.put([('2.png', b'second')])
    assert (len(again), again.get('2.png')) == (2, b'second')


def test_another_parser_begins_anew(tmp_path):
  cache = LabelCache(tmp_path / 'cache', MADE_BY)
  cache.put([('1.png', b'one')])
  cache.close()
  with contextlib.closing(LabelCache(tmp_path / 'cache', 'parser b')) as other:
    assert other.get('1.png') is None


def test_a_file_that_is_no_cache_is_replaced(tmp_path):
  (tmp_path / 'cache').write_bytes(b'not a database, and longer than the header of one' * 10)
  with contextlib.closing(LabelCache(tmp_path / 'cache', MADE_BY)) as cache:
    cache.put([('1.png', b'one')])
    assert len(cache) == 1


def test_a_file_damaged_inside_is_replaced(tmp_path):
  cache = LabelCache(tmp_path / 'cache', MADE_BY)
  cache.put((f'{i}.png', bytes([i]) * 1000) for i in range(100))
  cache.close()
  data = bytearray((tmp_path / 'cache').read_bytes())
  # All but the first pages, which tell the tables.
  data[4 * 4096 :] = bytes(len(data) - 4 * 4096)
  (tmp_path / 'cache').write_bytes(data)
  cache = LabelCache(tmp_path / 'cache', MADE_BY)
  assert [cache.get(f'{i}.png') for i in range(100)] == [None] * 100
  cache.put((f'{i}.png', b'again') for i in range(100))
  cache.close()
  with contextlib.closing(LabelCache(tmp_path / 'cache', MADE_BY)) as cache:
    assert cache.get('99.png') == b'again'


def test_an_empty_cache_leaves_no_file(tmp_path):
  LabelCache(tmp_path / 'cache', MADE_BY).close()
  assert not list(tmp_path.iterdir())


def test_a_killed_process_loses_at_most_what_it_was_putting(tmp_path):
  code = """
import os, signal, sys, pathlib
from jaxface_data.label_cache import LabelCache
cache = LabelCache(pathlib.Path(sys.argv[1]), sys.argv[2])
cache.put([('1.png', b'one')])
def dying():
  yield '2.png', b'two' * 10**6
  os.kill(os.getpid(), signal.SIGKILL)
cache.put(dying())
"""
  done = subprocess.run([sys.executable, '-c', code, str(tmp_path / 'cache'), MADE_BY], env=os.environ)
  assert done.returncode == -signal.SIGKILL
  with contextlib.closing(LabelCache(tmp_path / 'cache', MADE_BY)) as cache:
    assert (len(cache), cache.get('1.png')) == (1, b'one')
