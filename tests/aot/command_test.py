"""`jaxface compile`: the TPU's own compiler where it is installed; how it is asked and what is said of it."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys

import pytest

from jaxface.aot import step
from jaxface.aot import topology as topologies
from jaxface.aot.advice import advice
from jaxface.aot.command import as_json, fsdp_of, report, scaling_table
from jaxface.aot.hlo import Collective
from jaxface.aot.roofline import roofline
from jaxface.aot.step import Compiled, Memory
from jaxface.aot.topology import Topology, get_topology
from jaxface.chips import CHIPS
from jaxface.cli import main
from jaxface.errors import UserError
from tests.smoke import EXPERIMENT, REPOSITORY, smoke_config

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class _Device:
  device_kind: str = 'TPU v5 lite'


def _compiled(chips: int = 4, **changes) -> Compiled:
  topology = Topology(f'v5e:{chips}', (2, chips // 2), 1, [_Device()] * chips, CHIPS['TPU v5 lite'])
  memory = Memory(2 * GIB, 4 * GIB, GIB, 0, GIB // 2, int(7.6 * GIB), GIB, GIB // 10, 16 * GIB)
  work = {'flops': 2e12, 'bytes_moved': 8e9, 'exchanges': [Collective('all-reduce', 10**8, False, 'norm')]}
  estimate = roofline(**work, chip=topology.chip, dtype='bfloat16', torus=topology.shape)
  mesh = {'data': chips, 'fsdp': 1}
  given = {'mesh': mesh, 'batch_size': 64 * chips, 'dtype': 'bfloat16', 'seconds_to_compile': 9.0, 'memory': memory}
  return Compiled(**{'step': 'train', 'topology': topology, **given, **work, 'estimate': estimate, **changes})


def _too_large(**changes) -> Compiled:
  nothing = {'flops': None, 'bytes_moved': None, 'exchanges': None, 'estimate': None}
  memory = Memory(4 * GIB, 8 * GIB, GIB, 0, GIB, 14 * GIB, 10 * GIB, 0, 16 * GIB)
  return _compiled(memory=memory, **nothing, **changes)


def test_the_report_says_what_bounds_the_step():
  text = report('x.py:y', _compiled())
  assert 'batch 256 (64 a chip)' in text
  assert 'mesh data=4,fsdp=1' in text
  assert 'parameters      2.000' in text
  assert '54%' in text
  # 2 TFLOP at 197 TFLOP/s, 8 GB at 819 GB/s, 0.1 GB twice over two links of 45 GB/s.
  assert '10.152 ms' in text
  assert '9.768 ms' in text
  assert '2.222 ms' in text
  assert 'a step takes 12.37 ms or more, bound by compute' in text
  assert '82% of peak' in text
  assert 'strips' not in text
  assert 'cycles' not in text
  counted = report('x.py:y', _compiled(cycles=30 * 10**6))
  assert "\n20 ms by the compiler's own count of 30 million cycles at 1.5 GHz" in counted
  few = report('x.py:y', _compiled(batch_size=16))
  assert few.endswith('under 8 pictures a chip they are cut into strips; --config.batch_size=32 may take little longer')


def test_what_does_not_fit_says_by_how_much_and_what_would_do():
  compiled = _too_large(dtype='float32')
  assert 'does not fit, by 8 GiB' in report('x.py:y', compiled)
  config = smoke_config('mask_l1')
  config.batch_size = compiled.batch_size
  lines = advice(config, compiled)
  # 12 GiB of parameters and what belongs to them, 1 of frozen networks, 11 that grow with the rows.
  assert lines[0] == '--config.parallel.fsdp=4: about 15 of 16 GiB, fits'
  assert lines[1] == '--config.batch_size=68: about 15.9 of 16 GiB, fits'
  assert lines[2].startswith('--config.accumulate_steps=64: about 17.2')
  assert lines[2].endswith('does not fit alone')
  assert lines[3] == '--config.model.dtype=bfloat16: about 18.5 of 16 GiB, does not fit alone'
  assert 'remat' in lines[4]


def test_knobs_that_are_turned_already_are_turned_on():
  compiled = _too_large(dtype='bfloat16', mesh={'data': 8, 'fsdp': 2}, batch_size=256)
  config = smoke_config('mask_l1')
  config.batch_size, config.accumulate_steps = 256, 2
  lines = advice(config, compiled)
  # Of 12 GiB by two a device keeps half by four; 11 GiB grow with 8 rows a piece, of which there are two.
  assert lines[0] == '--config.parallel.fsdp=8: about 15 of 16 GiB, fits'
  # A multiple of 16 devices by two pieces.
  assert lines[1] == '--config.batch_size=64: about 15.8 of 16 GiB, fits'
  # 12 and 4 for the gradients' sum, 1, and 11 by 8.
  assert lines[2] == '--config.accumulate_steps=16: about 18.4 of 16 GiB, does not fit alone'


def test_advice_is_of_what_a_step_and_its_slices_can_do():
  compiled = _too_large(dtype='float32')
  config = smoke_config('mask_l1')
  config.batch_size = compiled.batch_size
  slices = dataclasses.replace(compiled, topology=dataclasses.replace(compiled.topology, slices=2))
  # Two chips of each share a copy at most.
  assert advice(config, slices)[0].startswith('--config.parallel.fsdp=2')
  config.accumulate_steps = 64
  knobs = [line.split('=')[0] for line in advice(config, dataclasses.replace(compiled, step='evaluate'))]
  assert knobs == ['--config.parallel.fsdp', '--config.batch_size', '--config.model.dtype']


def test_weak_scaling_is_beside_the_first():
  slower = dataclasses.replace(_compiled(16), estimate=dataclasses.replace(_compiled().estimate, exposed=0.0))
  lines = scaling_table([_compiled(), slower, _too_large()]).splitlines()
  assert lines[2].endswith('100.0%')
  assert '121.9%' in lines[3]
  assert 'does not fit' in lines[4]


@pytest.mark.parametrize(('mesh', 'fsdp'), [('data=4,fsdp=2', 2), ('fsdp=8', 8), ('data=2', 4), ('fsdp=1,data=8', 1)])
def test_a_mesh_in_words(mesh, fsdp):
  assert fsdp_of(mesh, 8) == fsdp


@pytest.mark.parametrize(
  ('mesh', 'told'),
  [
    ('data=3,fsdp=2', '--mesh data=3,fsdp=2 has 6 devices, the topology 8; choose from data=8,fsdp=1; data=4,fsdp=2'),
    ('model=2', "'model=2' is no side of a mesh"),
    ('data=0', "'data=0' is no side of a mesh"),
    ('data', "'data' is no side of a mesh"),
  ],
)
def test_a_mesh_that_is_none(mesh, told):
  with pytest.raises(UserError) as error:
    fsdp_of(mesh, 8)
  assert told in str(error.value)


@pytest.mark.parametrize(
  ('name', 'told'),
  [
    ('v9:2x2', "unknown topology 'v9:2x2'; choose from v4:2x2x1"),
    ('v5e:3x3', 'choose from v5e:1x1, v5e:2x2'),
    ('h200:3', "unknown topology 'h200:3'; choose from h200:1, h200:2, h200:4, h200:8"),
  ],
)
def test_an_unknown_topology_lists_the_known(name, told):
  with pytest.raises(UserError) as error:
    get_topology(name)
  assert told in str(error.value)


def say(*words: str) -> subprocess.CompletedProcess:
  """`jaxface compile` with these words."""
  # A process of its own: this one computes on eight devices.
  environment = {k: v for k, v in os.environ.items() if k not in ('XLA_FLAGS', 'JAX_PLATFORMS')}
  command = [sys.executable, '-m', 'jaxface.cli', 'compile', *words]
  return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=REPOSITORY, timeout=900)


@pytest.mark.skipif(importlib.util.find_spec('libtpu') is not None, reason='libtpu is installed')
def test_without_libtpu_it_says_how_to_get_it(capsys):
  assert main(['compile', '--config', f'{EXPERIMENT}:mask_l1,smoke', '--topology', 'v5e:2x2']) == 2
  assert "pip install 'jaxface[tpu-aot]'" in capsys.readouterr().err


@pytest.fixture
def compile_here(monkeypatch):
  """`jaxface compile`, with these words more, by a compiler that is not there; calls are listed."""
  calls = []
  monkeypatch.setattr(topologies, 'without_devices', lambda: None)
  monkeypatch.setattr(topologies, 'get_topology', lambda name, slices: _compiled().topology)
  monkeypatch.setattr(step, 'compile_step', lambda *a, **k: calls.append(a) or _compiled(text='HloModule x'))
  words = ['compile', '--config', f'{EXPERIMENT}:mask_l1,smoke', '--topology', 'v5e:2x2']
  return lambda *more: main([*words, *map(str, more)]), calls


def test_what_is_found_is_written(compile_here, tmp_path):
  say_here, _ = compile_here
  assert say_here('--out', tmp_path / 'new/found.json', '--hlo', tmp_path / 'new/programs') == 0
  assert json.loads((tmp_path / 'new/found.json').read_text())[0]['topology'] == 'v5e:4'
  assert (tmp_path / 'new/programs/v5e_4.txt').read_text() == 'HloModule x'


def test_what_cannot_be_written_is_told_before_the_work(compile_here, tmp_path, capsys):
  say_here, calls = compile_here
  (tmp_path / 'file').touch()
  for option, place, told in (
    ('--out', tmp_path, f'cannot write {tmp_path}: it is a folder; choose another --out'),
    ('--out', tmp_path / 'file/x.json', 'is a file; choose another --out'),
    ('--out', '/proc/x.json', 'choose another --out'),
    ('--hlo', tmp_path / 'file', 'is a file; choose another --hlo'),
    ('--hlo', '/proc/x', 'choose another --hlo'),
  ):
    assert say_here(option, place) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert told in line
  assert not calls
  assert [path.name for path in tmp_path.iterdir()] == ['file']


def test_what_a_later_topology_refuses_is_told_before_the_first_is_compiled(compile_here, monkeypatch, capsys):
  say_here, calls = compile_here
  monkeypatch.setattr(topologies, 'get_topology', lambda name, slices: _compiled(2 if '2x1' in name else 4).topology)
  for words, told in (
    (('--mesh', 'fsdp=4', '--sweep', 'v5e:2x1'), 'parallel.fsdp=4 does not divide the 2 devices'),
    (('--config.batch_size=6', '--sweep', 'v5e:2x1,v5e:2x2'), ''),
    (('--config.batch_size=5', '--sweep', 'v5e:2x1'), 'the same batch a chip is 2.5 rows on v5e:2'),
  ):
    assert say_here(*words) == (2 if told else 0)
    assert told in capsys.readouterr().err
  assert len(calls) == 3  # Of the one that is right.
  assert say_here('--hlo', 'x', '--out', 'x') == 2
  assert '--hlo x is a folder and --out a file' in capsys.readouterr().err


def test_all_that_is_said_reaches_the_compiler(monkeypatch, capsys):
  asked, found = [], iter([_compiled(), _compiled(16), _compiled(), _too_large()])

  def get(name, slices):
    asked.append((name, slices))
    return _compiled(16 if name == 'v5e:4x4' else 4).topology

  def compile_step(config, topology, **options):
    asked.append((topology.chips, config.batch_size, config.parallel.fsdp, options))
    return next(found)

  monkeypatch.setattr(topologies, 'without_devices', lambda: None)
  monkeypatch.setattr(topologies, 'get_topology', get)
  monkeypatch.setattr(step, 'compile_step', compile_step)
  words = ['compile', '--config', f'{EXPERIMENT}:mask_l1,smoke', '--topology', 'v5e:2x2', '--sweep', 'v5e:4x4']
  assert main([*words, '--slices', '3', '--mesh', 'fsdp=2', '--step', 'evaluate', '--quick']) == 0
  options = {'step': 'evaluate', 'quick': True}
  # As many pictures a chip, by the same mesh of parameters.
  assert asked == [('v5e:2x2', 3), ('v5e:4x4', 3), (4, 8, 2, options), (16, 32, 2, options)]
  assert 'weak scaling' in capsys.readouterr().out
  # One that does not fit is enough to fail.
  assert main(words) == 1
  assert asked[-1] == (16, 32, 1, {'step': 'train', 'quick': False})


def test_rates_are_of_all_chips_and_of_one():
  compiled = _compiled()
  rate = 256 / (2e12 / 197e12 + 2 * 1e8 / 90e9)
  assert f'at most {rate:.4g} images/s, {rate / 4:.4g} a chip' in report('x.py:y', compiled)
  assert as_json('x.py:y', compiled)['estimated_images_per_second'] == pytest.approx(rate)
  # A GPU cuts no pictures into strips.
  node = Topology('h200:4', (4,), 1, [_Device('NVIDIA H200')] * 4, CHIPS['NVIDIA H200'])
  assert 'strips' not in report('x.py:y', dataclasses.replace(compiled, topology=node, batch_size=4))
  assert dataclasses.replace(node, slices=2).chips == 8


@pytest.fixture(scope='module')
def compiled(tmp_path_factory):
  """Two steps compiled by the TPU's compiler: for four chips, and for eight with as many rows a chip."""
  if importlib.util.find_spec('libtpu') is None:
    pytest.skip('libtpu is not installed: pip install .[tpu-aot]')
  out = tmp_path_factory.mktemp('compile') / 'found.json'
  done = say(
    '--config', f'{EXPERIMENT}:nomask_l2,smoke', '--topology', 'v5e:2x2', '--sweep', 'v5e:2x4', '--quick',
    '--out', str(out), '--config.model.width_multiplier=1.0', '--config.model.latent_dim=256',
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return json.loads(out.read_text()), done.stdout


def test_the_compiler_is_given_what_the_plan_says(compiled):
  memory = compiled[0][0]['memory_bytes']
  planned = sum(memory[part] for part in ('parameters', 'optimizer', 'frozen', 'other', 'batch'))
  # Of so small a network, tiles of 8 by 128 that are filled up are an eighth.
  assert memory['given'] == pytest.approx(planned, rel=0.15)
  assert memory['optimizer'] == pytest.approx(2 * memory['parameters'], rel=0.01)


def test_weak_scaling_leaves_a_chips_work_as_it_is(compiled):
  four, eight = compiled[0]
  assert (four['chips'], four['batch_size'], eight['chips'], eight['batch_size']) == (4, 8, 8, 16)
  assert eight['flops'] == pytest.approx(four['flops'], rel=0.01)
  assert eight['bytes_moved'] == pytest.approx(four['bytes_moved'], rel=0.05)
  # Sums of gradients, and BatchNorm's moments, as many as it keeps; no device sees another's pictures.
  for each in (four, eight):
    assert set(each['exchanges']) == {'all-reduce', 'all-gather'}
    assert each['exchanges']['all-gather']['bytes'] <= each['chips'] * each['memory_bytes']['other']


def test_the_table_is_printed(compiled):
  assert 'weak scaling' in compiled[1]
  assert 'v5e:2x4' in compiled[1]
