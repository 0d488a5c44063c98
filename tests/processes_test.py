"""Runs in processes of their own: killed, preempted, and several together; what they compute does not change."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxface.checkpoint import Checkpoints
from jaxface.runlog import read_metrics
from jaxface.train import train
from tests.smoke import EXPERIMENT, saved_state, short_config


@pytest.fixture
def config(data_dir):
  return short_config(data_dir)


def _command(workdir: Path, config, *extra: str) -> list[str]:
  return [
    sys.executable, '-m', 'jaxface.cli', 'train', '--workdir', str(workdir),
    '--config', f'{EXPERIMENT}:mask_ssim_l2,smoke', '--data-dir', config.data.data_dir,
    '--config.data.workers=0', '--config.checkpoint_steps=2', '--config.keep_last=400', '--config.eval_steps=0',
    '--config.render_steps=0', '--config.log_steps=1', *extra,
  ]  # fmt: skip


def _wait_for_step(workdir: Path, step: int, process: subprocess.Popen) -> None:
  deadline = time.monotonic() + 240
  while time.monotonic() < deadline and process.poll() is None:
    # The writer may be in the middle of a line.
    text = (workdir / 'metrics.jsonl').read_text() if (workdir / 'metrics.jsonl').exists() else ''
    if text.count('\n') >= step:
      return
    time.sleep(0.05)
  raise AssertionError(f'step {step} was not reached: {process.poll()}')


def _stopped(config, workdir: Path, how: signal.Signals) -> tuple[int, str, int]:
  """Starts a run in a process of its own and stops it after a few steps: exit status, output, last checkpoint."""
  process = subprocess.Popen(
    _command(workdir, config, '--config.total_steps=400'), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
  )
  _wait_for_step(workdir, 5, process)
  process.send_signal(how)
  output, _ = process.communicate(timeout=120)
  with Checkpoints(workdir, read_only=True) as checkpoints:
    return process.returncode, output, checkpoints.steps[-1]


def test_a_killed_run_computes_what_it_would_have_computed(config, tmp_path):
  _, _, reached = _stopped(config, tmp_path / 'killed', signal.SIGKILL)
  config.total_steps = reached + 2
  train(config, tmp_path / 'killed', quiet=True)
  train(config, tmp_path / 'whole', quiet=True)
  states = [saved_state(tmp_path / name, config, reached + 2) for name in ('killed', 'whole')]
  jax.tree.map(np.testing.assert_array_equal, *states)


def test_a_preempted_run_saves_its_last_step_and_leaves(config, tmp_path):
  status, output, reached = _stopped(config, tmp_path / 'run', signal.SIGTERM)
  assert status == 0, output
  assert f'asked to stop: saved at step {reached}' in output
  assert reached == read_metrics(tmp_path / 'run')[-1]['step']


def test_two_processes_compute_what_one_does(config, tmp_path):
  """Two processes of four devices each, over gloo, against this process's eight."""
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    port = probe.getsockname()[1]
  environment = dict(os.environ)
  environment['XLA_FLAGS'] = re.sub(r'device_count=\d+', 'device_count=4', environment['XLA_FLAGS'])
  environment['JAX_CPU_COLLECTIVES_IMPLEMENTATION'] = 'gloo'
  extra = ('--config.total_steps=6', '--quiet', '--coordinator', f'127.0.0.1:{port}', '--num-processes', '2')
  processes = [
    subprocess.Popen(
      _command(tmp_path / 'two', config, *extra, '--process-id', str(i)),
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for i in range(2)
  ]
  outputs = [process.communicate(timeout=300)[0] for process in processes]
  assert [process.returncode for process in processes] == [0, 0], outputs
  train(config, tmp_path / 'one', quiet=True)
  losses = {
    name: [record['train/loss'] for record in read_metrics(tmp_path / name) if 'train/loss' in record]
    for name in ('one', 'two')
  }
  assert len(losses['two']) == 6
  np.testing.assert_allclose(losses['two'], losses['one'], rtol=1e-4)
  got, expected = (saved_state(tmp_path / name, config, 6).params for name in ('two', 'one'))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), got, expected)
