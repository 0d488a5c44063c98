"""Huge pages for what glibc allocates."""

import subprocess
import sys

import pytest

from jaxface.host_memory import with_huge_pages

ASKED = 'glibc.malloc.hugetlb=1'


def test_the_environment_asks_once_and_keeps_what_was_said():
  assert with_huge_pages({'A': 'b'}) == {'A': 'b', 'GLIBC_TUNABLES': ASKED}
  assert with_huge_pages({'GLIBC_TUNABLES': 'glibc.malloc.check=1'}) == {
    'GLIBC_TUNABLES': f'glibc.malloc.check=1:{ASKED}'
  }
  for said in (ASKED, 'glibc.malloc.hugetlb=0'):
    assert with_huge_pages({'GLIBC_TUNABLES': said}) == {'GLIBC_TUNABLES': said}


@pytest.mark.skipif(sys.platform != 'linux', reason='glibc only')
def test_a_command_starts_again_as_it_was():
  program = (
    'import os, sys; from jaxface.host_memory import restart_with_huge_pages\n'
    'restart_with_huge_pages(); print(os.environ["GLIBC_TUNABLES"], sys.argv[1:], sys.flags.utf8_mode)'
  )
  command = [sys.executable, '-X', 'utf8', '-c', program, 'a b', '--c']
  done = subprocess.run(command, env={}, capture_output=True, text=True, check=True)
  assert done.stdout == f"{ASKED} ['a b', '--c'] 1\n"
