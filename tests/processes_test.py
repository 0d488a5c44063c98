"""Runs in processes of their own: killed, preempted, and several together; what they compute does not change."""

import json
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
from jaxface.errors import UserError
from jaxface.evaluate import evaluate_runs
from jaxface.pictures import read_picture
from jaxface.processes import start_processes
from jaxface.runlog import read_metrics
from jaxface.train import train
from tests.smoke import EXPERIMENT, REPOSITORY, TINY, saved_state, short_config

pytestmark = pytest.mark.usefixtures('one_device_engines')


@pytest.fixture
def config(data_dir):
  config = short_config(data_dir)
  config.model.image_size = TINY
  return config


# The command line, on the tiny network.
_TINY_MAIN = """
import sys
from jaxface import runs
from tests import smoke
runs.make_task = smoke.make_tiny_or_task
from jaxface.cli import main
"""

_TRAIN = f"""{_TINY_MAIN}
sys.exit(main(sys.argv[1:]))
"""


def _command(workdir: Path, config, *extra: str) -> list[str]:
  return [
    'train', '--workdir', str(workdir), f'--config.model.image_size={TINY}',
    '--config', f'{EXPERIMENT}:mask_l2,smoke', '--data-dir', config.data.data_dir,
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


def _flags(devices: int) -> str:
  return re.sub(r'device_count=\d+', f'device_count={devices}', os.environ['XLA_FLAGS'])


def test_a_killed_run_computes_what_it_would_have_computed(config, tmp_path):
  killed, whole = tmp_path / 'killed', tmp_path / 'whole'
  process = subprocess.Popen(
    [sys.executable, '-c', _TRAIN, *_command(killed, config, '--config.total_steps=400')],
    cwd=REPOSITORY,
    env=os.environ | {'XLA_FLAGS': _flags(devices=1)},
    stdout=subprocess.DEVNULL,
  )
  _wait_for_step(killed, 5, process)
  process.kill()
  process.wait()
  with Checkpoints(killed, read_only=True) as checkpoints:
    config.total_steps = checkpoints.steps[-1] + 2
  for workdir in (killed, whole):
    train(config, workdir, quiet=True)
  jax.tree.map(np.testing.assert_array_equal, *(saved_state(w, config, config.total_steps) for w in (killed, whole)))


def test_a_run_outlives_its_terminal_and_saves_when_that_is_closed(config, tmp_path):
  run = tmp_path / 'run'
  process = subprocess.Popen(
    # Tests started by `nohup` would hand on that this signal is ignored.
    [
      sys.executable,
      '-c',
      f'import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n{_TRAIN}',
      *_command(run, config, '--config.total_steps=100_000'),
    ],
    cwd=REPOSITORY,
    env=os.environ | {'XLA_FLAGS': _flags(devices=1)},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
  )
  _wait_for_step(run, 5, process)
  process.stdout.close()  # As where Ctrl-C ends `tee`, too.
  time.sleep(1)  # The progress bar is drawn meanwhile.
  process.send_signal(signal.SIGHUP)
  assert process.wait(timeout=60) == 0
  with Checkpoints(run, read_only=True) as checkpoints:
    assert checkpoints.steps[-1] == read_metrics(run)[-1]['step'] > 5


# Trains as told, then evaluates what it has left, in the same processes: they take long to start.
_TRAIN_AND_EVALUATE = f"""{_TINY_MAIN}
from pathlib import Path
from jaxface.evaluate import evaluate_runs
workdir, data_dir = map(Path, sys.argv[1:3])
status = main(sys.argv[3:])
evaluate_runs([workdir], checkpoint='latest', data_dir=data_dir, batch_size=16)
sys.exit(status)
"""

_GIVE_UP = """
import sys
import jax
from jaxface.errors import UserError
from jaxface.processes import anywhere, check_same, giving_up_together, start_processes
start_processes('auto', None, None)
assert (anywhere(jax.process_index() == 1), anywhere(False)) == (True, False)
check_same('colour', {'eyes': 'blue'})
try:
  check_same('dataset', {'test': 6, 'train': jax.process_index()})
except UserError as error:
  print(error, file=sys.stderr)
try:
  with giving_up_together():
    if jax.process_index() == 1:
      raise UserError('no such folder here')
except UserError as error:
  sys.exit(str(error))
"""


# One process fails while the other waits for it.
_FAIL_ALONE = """
import sys
import jax
import numpy as np
from jaxface import cli, processes
from jaxface.errors import UserError
processes._PATIENCE = 1.0

def train(args):
  processes.start_processes('auto', None, None)
  if jax.process_index() == 1:
    raise UserError('no such folder here')
  processes.gathered(np.zeros(1))

cli._train = train
sys.exit(cli.main(['train', '--workdir', 'run']))
"""


def _two_processes(program: str, *arguments: str) -> list[subprocess.Popen]:
  """Two processes of four devices each, over gloo, which find each other by what Slurm's srun tells its tasks."""
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    port = probe.getsockname()[1]
  environment = dict(
    os.environ,
    XLA_FLAGS=_flags(devices=4),
    JAX_CPU_COLLECTIVES_IMPLEMENTATION='gloo',
    SLURM_JOB_ID='1',
    SLURM_STEP_NODELIST='localhost',
    SLURM_NTASKS='2',
    JAX_COORDINATOR_PORT=str(port),
  )
  return [
    subprocess.Popen(
      [sys.executable, '-c', program, *arguments],
      cwd=REPOSITORY,
      env=environment | {'SLURM_PROCID': str(i), 'SLURM_LOCALID': str(i)},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]


def test_two_processes_train_stop_together_evaluate_and_one_goes_on(config, tmp_path):
  """The whole life of a run on two hosts, one of which is preempted, against the same run on one device."""
  # Rounding would grow by the recipe's own optimizer, which divides by the size of tiny gradients.
  config.optimizer.name, config.optimizer.clip_each, config.optimizer.learning_rate = 'sgd', 0.0, 0.01
  overrides = [f'--config.optimizer.{key}={config.optimizer[key]}' for key in ('name', 'clip_each', 'learning_rate')]
  config.steps_per_dispatch = 2
  overrides.append('--config.steps_per_dispatch=2')
  two = tmp_path / 'two'
  command = _command(
    two, config, *overrides, '--config.total_steps=400', '--coordinator', 'auto', '--stopped-status', '75'
  )
  processes = _two_processes(_TRAIN_AND_EVALUATE, str(two), config.data.data_dir, *command)
  _wait_for_step(two, 3, processes[0])
  processes[1].send_signal(signal.SIGTERM)
  outputs = [process.communicate(timeout=300) for process in processes]
  assert [process.returncode for process in processes] == [75, 75], outputs

  with Checkpoints(two, read_only=True) as checkpoints:
    reached = checkpoints.steps[-1]
  assert f'asked to stop: saved at step {reached}' in outputs[0][0]
  assert reached == read_metrics(two)[-1]['step'] < 400
  assert ['true_mask' in output for output, _ in outputs] == [True, False]  # Process 0 speaks for both.

  together = json.loads((two / 'evaluation' / 'results.json').read_text())
  evaluate_runs([two], checkpoint='latest', data_dir=Path(config.data.data_dir), batch_size=8, out=tmp_path)
  alone = json.loads((tmp_path / 'results.json').read_text())
  assert together['protocol'] == alone['protocol']
  for name, value in alone['results']['two'].items():
    np.testing.assert_allclose(together['results']['two'][name], value, rtol=1e-4, atol=1e-6, err_msg=name)
  figures = (read_picture(folder / 'comparison.png').astype(int) for folder in (two / 'evaluation', tmp_path))
  np.testing.assert_allclose(*figures, atol=1)

  config.total_steps = reached + 2
  train(config, tmp_path / 'one', quiet=True)
  train(config, two, quiet=True)
  losses = {
    name: {record['step']: record['train/loss'] for record in read_metrics(tmp_path / name) if 'train/loss' in record}
    for name in ('one', 'two')
  }
  assert losses['two'].keys() == set(range(2, reached + 3, 2))
  steps = sorted(losses['two'])
  np.testing.assert_allclose(*([losses[name][step] for step in steps] for name in ('two', 'one')), rtol=1e-4)
  got, expected = (saved_state(tmp_path / name, config, reached + 2).params for name in ('two', 'one'))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), got, expected)


def test_a_process_that_fails_alone_ends_and_tells_its_status():
  waits, fails = _two_processes(_FAIL_ALONE)
  try:
    assert 'jaxface: error: no such folder here' in fails.communicate(timeout=60)[1]
    assert fails.returncode == 2
  finally:
    waits.kill()
    waits.communicate()


def test_what_stops_one_process_stops_all(tmp_path):
  processes = _two_processes(_GIVE_UP)
  outputs = [process.communicate(timeout=120)[1] for process in processes]
  assert [process.returncode for process in processes] == [1, 1], outputs
  assert 'process 1 of 2 gave up; its own message says why' in outputs[0]
  assert 'no such folder here' in outputs[1]
  assert all(
    'process 1 has another dataset than process 0; all need the same, and here it is train: ' in output
    for output in outputs
  )


@pytest.mark.parametrize('address', ['nonsense', 'localhost:abc', 'localhost:99999', ':80', '', '[::1]:x'])
def test_a_coordinator_that_is_no_address_is_refused(address):
  with pytest.raises(UserError, match='HOST:PORT'):
    start_processes(address, 2, 0)
