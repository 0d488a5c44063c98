"""Settings for CPU programs: asked for once, never against the user's word, and known to this jaxlib."""

import subprocess
import sys

import pytest

from jaxface.cpu_environment import for_cpu_programs

HUGE = 'glibc.malloc.hugetlb=1'
FLAG = '--xla_cpu_experimental_ynn_fusion_type'
ON_LINUX = pytest.mark.skipif(sys.platform != 'linux', reason='glibc only')


@pytest.fixture(autouse=True)
def _release(monkeypatch):
  monkeypatch.setattr('jaxface.cpu_environment.version', lambda _: '0.10.2')


def test_the_environment_asks_once_and_keeps_what_was_said():
  asked = for_cpu_programs({'A': 'b'})
  assert asked.pop('XLA_FLAGS').startswith(f'{FLAG}=')
  assert asked == {'A': 'b', 'GLIBC_TUNABLES': HUGE}
  said = {'GLIBC_TUNABLES': 'glibc.malloc.check=1', 'XLA_FLAGS': '--xla_a=1 --xla_b'}
  both = for_cpu_programs(said)
  assert both['GLIBC_TUNABLES'] == f'{said["GLIBC_TUNABLES"]}:{HUGE}'
  assert both['XLA_FLAGS'].startswith(f'{said["XLA_FLAGS"]} {FLAG}=')
  assert for_cpu_programs(both) == both
  against = {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=0', 'XLA_FLAGS': f'{FLAG}='}
  assert for_cpu_programs(against) == against


def test_other_releases_are_not_told_of_a_flag_they_may_not_know(monkeypatch):
  monkeypatch.setattr('jaxface.cpu_environment.version', lambda _: '0.11.0')
  assert for_cpu_programs({}) == {'GLIBC_TUNABLES': HUGE}


@ON_LINUX
def test_a_command_starts_again_as_it_was():
  program = (
    'import os, sys; from jaxface.cpu_environment import restart_for_cpu_programs\n'
    'restart_for_cpu_programs(); print(os.environ["GLIBC_TUNABLES"], sys.argv[1:], sys.flags.utf8_mode)'
  )
  command = [sys.executable, '-X', 'utf8', '-c', program, 'a b', '--c']
  done = subprocess.run(command, env={}, capture_output=True, text=True, check=True)
  assert done.stdout == f"{HUGE} ['a b', '--c'] 1\n"


@ON_LINUX
def test_this_release_knows_its_settings():
  program = (
    'from jaxface.cpu_environment import restart_for_cpu_programs; restart_for_cpu_programs()\n'
    'import jax.numpy as jnp; print(float(jnp.arange(4.0).sum()))'
  )
  done = subprocess.run([sys.executable, '-c', program], env={'JAX_PLATFORMS': 'cpu'}, capture_output=True, text=True)
  assert (done.returncode, done.stdout, done.stderr) == (0, '6.0\n', '')
