"""The host's memory between the steps of a CPU program."""

import os
import sys
from collections.abc import Mapping

_VARIABLE = 'GLIBC_TUNABLES'
_HUGE_PAGES = 'glibc.malloc.hugetlb=1'


def with_huge_pages(environ: Mapping[str, str]) -> dict[str, str]:
  """An environment in which glibc (2.35 and later) asks for huge pages, where the kernel gives them to those who ask.

  XLA on CPU takes the temporaries of a program anew whenever it runs, and so the kernel has to find and clear every
  page of them at every step. In pages of 4 KiB that is a fifth of the face-mask VAE's step. Whoever says anything
  about huge pages in `GLIBC_TUNABLES` is left alone.
  """
  tunables = environ.get(_VARIABLE, '')
  if 'glibc.malloc.hugetlb' in tunables:
    return dict(environ)
  return {**environ, _VARIABLE: f'{tunables}:{_HUGE_PAGES}' if tunables else _HUGE_PAGES}


def restart_with_huge_pages() -> None:
  """Starts this very command again with huge pages, in the same process, unless it has them: glibc reads it once."""
  wanted = with_huge_pages(dict(os.environ))
  if sys.platform == 'linux' and wanted != dict(os.environ):
    os.execve(sys.executable, sys.orig_argv, wanted)
