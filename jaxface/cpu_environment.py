"""What glibc and XLA must be told before a process starts, so that programs run well on a CPU."""

import os
import sys
from collections.abc import Mapping
from importlib.metadata import version

_BY_YNNPACK = 'LIBRARY_FUSION_TYPE_REDUCE,LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT'


def for_cpu_programs(environ: Mapping[str, str]) -> dict[str, str]:
  """`environ` with two settings added; a setting that the user has made stays as it is.

  Huge pages (glibc 2.35 and later, where the kernel gives them to those who ask): XLA on CPU takes the temporaries of a
  program anew whenever it runs, and so the kernel has to find and clear every page of them at every step. In pages of
  4 KiB that is a fifth of the face-mask VAE's step.

  Convolutions by Eigen in place of YNNPACK: XLA's release 0.10 gives YNNPACK the larger ones to run on a single core.
  Sums and matrix products stay there. Other releases may not know the flag, and would die of it.
  """
  changed = _with(environ, 'GLIBC_TUNABLES', ':', 'glibc.malloc.hugetlb', '1')
  if version('jaxlib').startswith('0.10.'):
    changed = _with(changed, 'XLA_FLAGS', ' ', '--xla_cpu_experimental_ynn_fusion_type', _BY_YNNPACK)
  return changed


def restart_for_cpu_programs() -> None:
  """Starts this very command again with `for_cpu_programs`, in the same process, unless it is: glibc reads it once."""
  wanted = for_cpu_programs(os.environ)
  if sys.platform == 'linux' and wanted != dict(os.environ):
    os.execve(sys.executable, sys.orig_argv, wanted)


def _with(environ: Mapping[str, str], variable: str, separator: str, name: str, value: str) -> dict[str, str]:
  """With `name=value` among the settings of `variable`, unless that name is among them."""
  said = environ.get(variable, '')
  if name in said:
    return dict(environ)
  return {**environ, variable: separator.join(filter(None, (said, f'{name}={value}')))}
