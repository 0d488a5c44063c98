"""Starting runs on clusters: which devices share parameters, where files may lie, and what the launch files say."""

import collections
import importlib.util
import itertools
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import fsspec
import jax
import numpy as np
import pytest
import yaml
from fsspec.implementations.memory import MemoryFileSystem
from ml_collections import ConfigDict

from jaxface import runlog, workdir
from jaxface.cli import make_parser
from jaxface.errors import UserError
from jaxface.folders import folder, in_object_store
from jaxface.meshes import make_mesh
from jaxface.processes import start_processes
from tests.smoke import REPOSITORY

LAUNCH = REPOSITORY / 'experiments' / 'launch'


def _devices(topology: str, slices: int = 1) -> list[jax.Device]:
  """Devices of TPU slices that nobody has, as the TPU compiler describes them."""
  if importlib.util.find_spec('libtpu') is None:
    pytest.skip('only libtpu knows the shapes of TPU slices; it comes with jax[tpu]')
  from jax.experimental import topologies

  # No machine's metadata are asked, and other processes may look at the same time.
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('TPU_SKIP_MDS_QUERY', '1')
    patch.setenv('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
    more = {'num_slices': slices} if slices > 1 else {}
    return topologies.get_topology_desc(topology, 'tpu', **more).devices


def test_those_who_share_parameters_sit_in_one_slice():
  mesh = make_mesh(4, _devices('v5e:2x2', slices=2))
  assert mesh.devices.shape == (2, 4)
  assert [{device.slice_index for device in group} for group in mesh.devices] == [{0}, {1}]
  # Half a slice each: still in one, and the data axis goes through a slice before the next.
  mesh = make_mesh(2, _devices('v5e:2x2', slices=2))
  assert [[device.slice_index for device in group] for group in mesh.devices] == [[0, 0], [0, 0], [1, 1], [1, 1]]


def test_more_than_a_slice_is_refused():
  devices = _devices('v5e:2x2', slices=2)
  with pytest.raises(UserError, match=r'fsdp=8 .* 4 devices of each of the 2 slices or nodes; choose from \[1, 2, 4\]'):
    make_mesh(8, devices)
  with pytest.raises(
    UserError, match='the 2 slices or nodes of this run have 4, 3 devices; start it on as many in each'
  ):
    make_mesh(1, devices[:-1])


@pytest.mark.parametrize('topology', ['v5e:4x4', 'v6e:4x4', 'v5p:2x2x4'])
def test_those_who_share_parameters_are_neighbours(topology):
  """A group is a compact piece of the torus: as many links through it as the most compact box of its size."""
  devices = _devices(topology)
  for fsdp in (1, 2, 4, 8):
    groups = make_mesh(fsdp, devices).devices
    assert sorted(device.id for device in groups.flat) == sorted(device.id for device in devices)
    for group in groups:
      places = np.array([device.coords for device in group])
      sides = np.ptp(places, axis=0) + 1
      assert sides.prod() == fsdp, (topology, fsdp, places)
      assert sides.max() <= 4


@pytest.mark.parametrize('fsdp', [1, 2, 4, 8])
def test_every_process_feeds_as_many_rows(fsdp):
  """Whatever the mesh's order, the rows of a batch that a process holds are its share, and nobody else's."""
  mesh = make_mesh(fsdp, _devices('v6e:4x4'))
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(('data', 'fsdp'))).devices_indices_map((32,))
  held = collections.defaultdict(set)
  for device, (part,) in rows.items():
    held[device.process_index] |= set(range(32)[part])
  assert {len(found) for found in held.values()} == {32 // len(held)}
  assert not any(a & b for a, b in itertools.combinations(held.values(), 2))


def test_no_cluster_is_a_users_error():
  # JAX looks for a cluster only where it has done nothing yet.
  program = 'from jaxface.processes import start_processes; start_processes("auto", None, None)'
  environment = dict(os.environ, TPU_SKIP_MDS_QUERY='1')
  found = subprocess.run([sys.executable, '-c', program], env=environment, capture_output=True, text=True, check=False)
  assert 'UserError: --coordinator auto finds no cluster here' in found.stderr


def test_wrong_process_numbers_are_refused():
  with pytest.raises(UserError, match='need --coordinator HOST:PORT'):
    start_processes(None, 2, 0)
  with pytest.raises(UserError, match='got N=2, I=2'):
    start_processes('host:1', 2, 2)


class _Bucket(MemoryFileSystem):
  """Objects in memory, under the name by which Google's object store is asked for."""

  protocol = ('gcs', 'gs')
  store, pseudo_dirs = {}, ['']

  @classmethod
  def _strip_protocol(cls, path):
    return super()._strip_protocol(path.removeprefix('gs://'))


def test_a_run_is_kept_in_a_bucket(monkeypatch):
  fsspec.register_implementation('gcs', _Bucket, clobber=True)
  bucket = Path('gs://bucket/runs/best')  # As argparse makes it: 'gs:/bucket/runs/best'.
  monkeypatch.setattr(runlog.tensorboardX, 'SummaryWriter', _NoBoard)
  run = folder(bucket)
  assert str(run) == 'gs://bucket/runs/best'
  assert in_object_store(run / 'checkpoints')
  config = ConfigDict({'task': 'vae', 'widths': (1, 2)})
  with workdir.locked(run):
    workdir.open_run(run, config)
    workdir.check_disk(run, kept=3, size=2**60)
  assert workdir.read_config(bucket).to_dict() == config.to_dict()
  for first_step in (0, 1):  # The second log takes back what was said after step 1.
    with runlog.RunLog(run, first_step=first_step, total_steps=3, images_per_step=1, quiet=True) as log:
      log.scalars(first_step + 1, {'train/loss': 1.0})
      log.scalars(first_step + 2, {'train/loss': 2.0})
      log.pictures(1, {'input': np.zeros((1, 4, 4, 3))})
  assert [record['step'] for record in runlog.read_metrics(bucket)] == [1, 2, 3]
  assert (run / 'pictures' / 'step_00000001.png').read_bytes().startswith(b'\x89PNG')
  assert not Path('gs:').exists()


class _NoBoard:
  """TensorBoard files need Google's own package."""

  def __init__(self, *_, **__):
    self.add_scalar = self.add_image = lambda *_, **__: None

  def close(self):
    pass


def _no_package(name: str):
  raise ImportError(name)


def test_stores_that_cannot_be_written_are_refused(monkeypatch):
  with pytest.raises(UserError, match='s3://bucket/run is in an object store .* mount the store'):
    folder(Path('s3://bucket/run'))
  monkeypatch.setattr(fsspec, 'get_filesystem_class', _no_package)
  with pytest.raises(UserError, match='gs://bucket/run needs the package gcsfs'):
    folder('gs://bucket/run')
  assert folder('runs/best') == Path('runs/best')


def _run_script(script: str, instead: str, tmp_path: Path, environment: dict[str, str], *arguments: str) -> list[str]:
  """What `script` gives to the program `instead`, of which it finds a stand-in."""
  stand_in = tmp_path / instead
  stand_in.write_text('#!/usr/bin/env bash\nprintf "%s\\0" "$@"\n')
  stand_in.chmod(0o755)
  environment = {'PATH': f'{tmp_path}:{os.environ["PATH"]}', **environment}
  found = subprocess.run(
    ['bash', str(LAUNCH / script), *arguments], env=environment, capture_output=True, text=True, check=True
  )
  return found.stdout.split('\0')[:-1]


_TRAIN = ('train', '--config', 'experiments/vae.py:mask_ssim_l2', '--workdir', 'my runs/best', '--config.seed=1')


def _assert_understood(words: list[str]) -> None:
  args, rest = make_parser().parse_known_args(words)
  assert args.coordinator
  assert all(word.startswith('--config.') for word in rest)


@pytest.mark.parametrize('options', [{}, {'LIBTPU_INIT_ARGS': '--a=1 --b=2'}])
@pytest.mark.parametrize('named', ['TPU', 'QUEUED'])
def test_the_tpu_script_says_the_command_on_all_machines(tmp_path, named, options):
  words = _run_script('tpu_pod.sh', 'gcloud', tmp_path, {named: 'mine', 'ZONE': 'there', **options}, *_TRAIN)
  assert {'--worker=all', '--zone=there', 'mine'} <= set(words)
  assert ('--node=all' in words) == (named == 'QUEUED')
  remote = shlex.split(words[-1].removeprefix('--command='))
  start = remote.index('.venv/bin/jaxface')
  assert remote[remote.index('env') + 1 : start] == [f'{name}={value}' for name, value in options.items()]
  words = remote[start + 1 :]
  assert words == [*_TRAIN, '--coordinator', 'auto']
  _assert_understood(words)


def test_the_slurm_script_says_the_command_in_all_tasks(tmp_path):
  words = _run_script('slurm.sbatch', 'srun', tmp_path, {}, *_TRAIN)
  words = words[words.index('.venv/bin/jaxface') + 1 :]
  assert words == [*_TRAIN, '--coordinator', 'auto']
  _assert_understood(words)


@pytest.mark.parametrize('name', ['kubernetes.yaml', 'tpu_slices.yaml'])
def test_the_kubernetes_files_say_what_is_understood(name):
  *_, job = yaml.safe_load_all((LAUNCH / name).read_text())
  pods = job['spec'] if job['kind'] == 'Job' else job['spec']['replicatedJobs'][0]['template']['spec']
  assert pods['parallelism'] == pods['completions']
  [container] = pods['template']['spec']['containers']
  words = json.loads(
    json.dumps([*container['command'], *container['args']]).replace(
      '$(JOB_COMPLETION_INDEX)', str(pods['parallelism'] - 1)
    )
  )
  assert words[0] == 'jaxface'
  _assert_understood(words[1:])
  if '--num-processes' in str(words):
    assert f'--num-processes={pods["parallelism"]}' in words
