"""The commands as a user types them: every use of the README in a smoke size, and one clear line for wrong input."""

import errno
import json
import logging
import re
import shlex
import shutil
import sys
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest

from jaxface import train as train_module
from jaxface import vae_pictures
from jaxface.benchmark import training
from jaxface.cli import _hush_abandoned_reads, main
from jaxface.models.vae import stage_widths
from tests.smoke import EXPERIMENT, REPOSITORY, TINY, make_tiny_or_task

pytestmark = pytest.mark.usefixtures('shared_engines')


def _fails(capsys, *words, status=2) -> str:
  """Runs a command that must fail; returns its one line of error."""
  try:
    code = main([str(word) for word in words])
  except SystemExit as stop:  # argparse leaves by itself.
    code = stop.code
  error = capsys.readouterr().err.strip().splitlines()
  assert code == status, error
  assert not any('Traceback' in line for line in error)
  return error[-1]


def test_reads_that_orbax_abandons_are_not_heard(monkeypatch, caplog):
  heard = []
  monkeypatch.setattr(sys, 'unraisablehook', lambda told: heard.append(str(told.exc_value)))
  _hush_abandoned_reads()

  class Told:
    def __init__(self, text):
      self.text = text

    def __del__(self):
      raise RuntimeError(self.text)

  for text in ('Event loop is closed', 'something else'):
    Told(text)
  logging.getLogger('asyncio').error('Task exception was never retrieved')
  logging.getLogger('asyncio').setLevel(logging.NOTSET)
  assert heard == ['something else']
  assert not caplog.records


@pytest.fixture(scope='module')
def run(data_dir, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('cli') / 'run'
  words = ['train', '--config', f'{EXPERIMENT}:mask_ssim_l2,smoke', '--config.total_steps=2', '--config.data.workers=0']
  words.append(f'--config.model.image_size={TINY}')
  assert main([*words, '--data-dir', str(data_dir), '--workdir', str(workdir), '--quiet']) == 0
  return workdir


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  """Pictures of several sizes, one of them grey."""
  folder, rng = tmp_path_factory.mktemp('photos'), np.random.default_rng(0)
  for i, shape in enumerate([(40, 30, 3), (16, 16, 3), (50, 64)]):
    cv2.imwrite(str(folder / f'{i}.png'), rng.integers(0, 256, shape, np.uint8))
  return folder


def test_a_run_goes_on_without_its_config(run, capsys):
  assert main(['train', '--workdir', str(run), '--quiet']) == 0


def test_reconstruct_into_a_grid_and_into_files(run, photos, tmp_path):
  assert main(['reconstruct', '--workdir', str(run), '--images', str(photos), '--out', str(tmp_path / 'grid.png')]) == 0
  grid = cv2.imread(str(tmp_path / 'grid.png'))
  assert grid.shape[1] == 4 * 98 + 2
  assert main(['reconstruct', '--workdir', str(run), '--images', str(photos), '--out', str(tmp_path / 'files')]) == 0
  written = sorted((tmp_path / 'files').iterdir())
  assert [cv2.imread(str(path)).shape for path in written] == [(40, 30, 3), (16, 16, 3), (50, 64, 3)]


def test_reconstruct_by_suffix_in_the_order_named_and_never_its_own(run, photos, tmp_path):
  for picture in photos.iterdir():
    shutil.copy(picture, tmp_path)
  words = ['reconstruct', '--workdir', str(run), '--images', str(tmp_path / '2.png'), str(tmp_path), '--out']
  for name, rows in (('grid.jpg', 3), ('files', 3), ('files', 4)):
    out = tmp_path / name
    assert main([*words, str(out)]) == 0
    if name == 'files':
      assert sorted(path.name for path in out.iterdir())[:3] == ['0000_2.png', '0001_0.png', '0002_1.png']
      assert len(list(out.iterdir())) == 4
    else:
      assert cv2.imread(str(out)).shape == (22 + rows * 98 + 2, 4 * 98 + 2, 3)


@pytest.mark.parametrize('prior', ['normal', 'fitted'])
def test_sample_is_a_function_of_its_seed(run, tmp_path, prior):
  sheets = []
  for i, seed in enumerate((0, 0, 1)):
    out = tmp_path / f'{i}.png'
    words = ['sample', '--workdir', str(run), '--count', '5', '--prior', prior, '--seed', str(seed)]
    assert main([*words, '--out', str(out)]) == 0
    sheets.append(cv2.imread(str(out)))
  np.testing.assert_array_equal(sheets[0], sheets[1])
  assert sheets[0].shape == (2 * 98 + 2, 3 * 98 + 2, 3)


def test_interpolate_begins_and_ends_with_the_pictures(run, photos, tmp_path):
  out = tmp_path / 'walk.png'
  assert main(['interpolate', '--workdir', str(run), '--images', str(photos), '--steps', '4', '--out', str(out)]) == 0
  sheet = cv2.imread(str(out))
  assert sheet.shape == (2 * 98 + 2, 6 * 98 + 2, 3)
  np.testing.assert_array_equal(sheet[2:98, 5 * 98 + 2 : 6 * 98], sheet[100:196, 2:98])


def test_interpolate_goes_from_face_to_face_as_they_are_named(run, photos, tmp_path):
  def walk(*images):
    words = ['interpolate', '--workdir', run, '--steps', 2, '--out', tmp_path / 'walk.png', '--images', *images]
    assert main([str(word) for word in words]) == 0
    sheet = cv2.imread(str(tmp_path / 'walk.png'))[2:, 2:]
    cells = sheet.reshape(len(sheet) // 98, 98, 4, 98, 3)[:, :96, :, :96].swapaxes(1, 2)
    return [*cells[:, 0], cells[-1, -1]]

  first, second, third = walk(photos)
  for order, expected in (
    ((1, 0), (second, first)),
    ((2, 0, 2), (third, first, third)),
    ((1, ''), (second, first, second, third)),
  ):
    named = [photos / (f'{i}.png' if i != '' else '') for i in order]
    np.testing.assert_array_equal(walk(*named), expected)


def test_an_ablation_finds_what_it_measures_on_before_it_trains(data_dir, tmp_path, capsys):
  words = [
    'ablation',
    '--config',
    EXPERIMENT,
    '--flags',
    ',smoke',
    '--data-dir',
    data_dir,
    '--workdir',
    tmp_path / 'runs',
  ]
  assert "no examples in split 'tset'" in _fails(capsys, *words, '--split', 'tset')
  assert not (tmp_path / 'runs').exists()


def test_ablation_prints_both_tables_and_the_claims(data_dir, tmp_path, capsys):
  words = ['ablation', '--config', EXPERIMENT, '--flags', ',smoke', '--variants', 'mask_ssim_l2']
  words += ['--data-dir', str(data_dir), '--workdir', str(tmp_path / 'runs'), '--config.total_steps=2']
  assert main([*words, '--config.data.workers=0', f'--config.model.image_size={TINY}']) == 0
  out = capsys.readouterr().out
  assert re.search(r'mask_ssim_l2 .*\(0.693\)', out)
  assert 'not judged: masks improve every metric' in out
  saved = json.loads((tmp_path / 'runs' / 'ablation.json').read_text())
  assert set(saved['measured']) == {'mask_ssim_l2'}
  assert (tmp_path / 'runs' / 'comparison.png').is_file()


def test_benchmark_writes_rows_with_what_was_timed(data_dir, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(training, 'make_task', make_tiny_or_task)
  out = tmp_path / 'rows.json'
  words = [
    'benchmark',
    '--config',
    f'{EXPERIMENT}:mask_l1,smoke',
    '--seconds',
    '0.01',
    '--only',
    'loader,resident',
    f'--config.model.image_size={TINY}',
  ]
  assert main([*words, '--data-dir', str(data_dir), '--out', str(out), '--config.data.workers=0']) == 0
  rows = json.loads(out.read_text())['rows']
  timed = ' | '.join(row['timed'] for row in rows)
  for text in ('loader alone', 'jit on 8 devices', 'data: resident'):
    assert text in timed
  steps = [row for row in rows if 'steps_per_second' in row]
  for row in steps:
    assert row['model_tflop_per_step'] > 0
    assert row['compile_seconds'] > 0
    np.testing.assert_allclose(row['images_per_second_per_device'] * row['devices'], row['images_per_second'])


def _keras_file(path: Path) -> None:
  """A smoke-sized network's weights, as Keras 2 writes them."""
  import jax

  from jaxface.convert import to_reference
  from jaxface.models.vae import FaceMaskVAE

  model = FaceMaskVAE(image_size=16, latent_dim=4, **stage_widths(16, 0.05)._asdict())
  shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 16, 16, 3), np.float32))
  tensors = to_reference('vae', jax.tree.map(lambda s: np.full(s.shape, 0.1, np.float32), shapes))
  layers: dict[str, list[str]] = {}
  with h5py.File(path, 'w') as file:
    for name, value in tensors.items():
      layer, kind = name.split('.')
      layers.setdefault(layer, []).append(f'{layer}/{kind}:0')
      file.create_dataset(f'{layer}/{layer}/{kind}:0', data=value)
    file.attrs['layer_names'] = [layer.encode() for layer in layers]
    for layer, weights in layers.items():
      file[layer].attrs['weight_names'] = [weight.encode() for weight in weights]


def test_keras_weights_become_a_workdir(data_dir, photos, tmp_path, capsys):
  _keras_file(tmp_path / 'weights.h5')
  workdir = tmp_path / 'keras'
  words = ['convert', 'vae', tmp_path / 'weights.h5', '--workdir', workdir, '--config', EXPERIMENT]
  assert main([str(word) for word in words]) == 0
  report = json.loads((workdir / 'convert.json').read_text())
  assert report['image_size'] == 16
  assert report['mask_decoder'] is True
  assert (
    main(['reconstruct', '--workdir', str(workdir), '--images', str(photos), '--out', str(tmp_path / 'x.png')]) == 0
  )
  words = ['evaluate', '--workdir', str(workdir), '--data', 'synthetic_faces/faces_16', '--data-dir', str(data_dir)]
  assert main([*words, '--batch-size', '8']) == 0
  assert 'already holds checkpoints' in _fails(
    capsys, 'convert', 'vae', tmp_path / 'weights.h5', '--workdir', workdir, '--config', EXPERIMENT
  )


@pytest.mark.parametrize(
  ('stopped_by', 'status', 'told'),
  [
    (train_module.NonFiniteError('l1 became nan at step 3'), 1, 'jaxface: error: l1 became nan at step 3\n'),
    (KeyboardInterrupt(), 130, 'jaxface: interrupted\n'),
    (BrokenPipeError(), 128 + 13, ''),
    (OSError(errno.ENOSPC, 'No space left on device', 'x'), 2, 'the disk is full (x); make room'),
    (OSError(errno.EDQUOT, 'Disk quota exceeded', 'x'), 2, 'the disk is full (x); make room'),
    (train_module.Outcome(3, False, {}), 75, ''),
    (train_module.Outcome(4, True, {}), 0, ''),
  ],
)
def test_how_a_run_ended_is_told_by_its_status(tmp_path, monkeypatch, capsys, stopped_by, status, told):
  def train(config, workdir, *, quiet):
    if isinstance(stopped_by, BaseException):
      raise stopped_by
    return stopped_by

  monkeypatch.setattr(train_module, 'train', train)
  words = ['train', '--config', f'{EXPERIMENT}:mask_l1,smoke', '--workdir', str(tmp_path), '--stopped-status', '75']
  assert main(words) == status
  error = capsys.readouterr().err
  assert told in error
  assert bool(told) == bool(error)


def test_wrong_configurations(data_dir, tmp_path, capsys):
  train = ['train', '--data-dir', data_dir, '--workdir', tmp_path / 'run', '--config']
  smoke = f'{EXPERIMENT}:mask_l1,smoke'
  assert "unknown variant 'mask_l3'; choose from mask_l1" in _fails(capsys, *train, f'{EXPERIMENT}:mask_l3')
  assert "unknown flag 'tiny'; choose from demo, smoke" in _fails(capsys, *train, f'{EXPERIMENT}:mask_l1,tiny')
  assert 'no configuration file nowhere.py' in _fails(capsys, *train, 'nowhere.py:mask_l1')
  assert "unknown key 'batch_sise' in" in _fails(capsys, *train, smoke, '--config.batch_sise=3')
  assert 'config.optimizer has clip_each' in _fails(capsys, *train, smoke, '--config.optimizer.x=3')
  assert 'batch_size' in _fails(capsys, *train, smoke, '--config.batch_size=many')
  assert 'next that does is 16' in _fails(capsys, *train, smoke, '--config.batch_size=12')
  assert 'choose from l1, l2' in _fails(capsys, *train, smoke, '--config.loss.name=huber')
  assert "unknown task 'gan'" in _fails(capsys, *train, smoke, '--config.task=gan')
  assert 'unrecognized arguments: --sped' in _fails(capsys, *train, smoke, '--sped')
  assert 'jaxface prepare' in _fails(capsys, *train, smoke, '--config.data.name=face_folder/none')
  assert 'smallest is 16' in _fails(capsys, *train, smoke, '--config.model.image_size=8')
  assert 'choose from float32, bfloat16' in _fails(capsys, *train, smoke, '--config.model.dtype=float31')
  assert 'not measured; choose from loss, whole/l1' in _fails(capsys, *train, smoke, '--config.best_metric=lpips')
  assert 'choose from lowest, highest' in _fails(capsys, *train, smoke, '--config.best_is=greatest')
  assert not (tmp_path / 'run').exists(), 'nothing may be left of a run that could not begin'


def test_wrong_workdirs_and_pictures(run, photos, tmp_path, capsys):
  assert 'holds no run' in _fails(capsys, 'train', '--workdir', tmp_path / 'none')
  assert 'holds no run' in _fails(capsys, 'evaluate', '--workdir', tmp_path)
  reconstruct = ['reconstruct', '--workdir', run, '--out', tmp_path / 'x.png', '--images']
  assert 'nowhere' in _fails(capsys, *reconstruct, tmp_path / 'nowhere')
  (tmp_path / 'empty').mkdir()
  assert 'empty' in _fails(capsys, *reconstruct, tmp_path / 'empty')
  (tmp_path / 'broken.png').write_bytes((photos / '0.png').read_bytes()[:60])
  assert 'broken.png' in _fails(capsys, *reconstruct, tmp_path / 'broken.png')
  assert 'choose best, latest or one of [2]' in _fails(capsys, *reconstruct, photos, '--checkpoint', '7')
  interpolate = ['interpolate', '--workdir', run, '--out', tmp_path / 'x.png', '--images', photos / '0.png']
  assert 'needs two pictures or more' in _fails(capsys, *interpolate)
  sample = ['sample', '--workdir', run, '--out']
  assert 'at least 1' in _fails(capsys, *sample, tmp_path / 'x.png', '--count', '0')
  assert '--seed -1: give at least 0' in _fails(capsys, *sample, tmp_path / 'x.png', '--seed', '-1')
  assert "no examples in split 'tset'" in _fails(capsys, 'evaluate', '--workdir', run, '--split', 'tset')
  assert "unknown part 'sim'" in _fails(capsys, 'benchmark', '--config', f'{EXPERIMENT}:mask_l1,smoke', '--only', 'sim')
  assert "unknown system 'gan'" in _fails(capsys, 'convert', 'gan', photos / '0.png', '--workdir', tmp_path / 'c')
  assert 'HDF5' in _fails(
    capsys, 'convert', 'vae', photos / '0.png', '--workdir', tmp_path / 'c', '--config', EXPERIMENT
  )
  assert not (tmp_path / 'x.png').exists()


def test_pictures_that_cannot_be_written_are_told_before_the_work(run, photos, tmp_path, capsys, monkeypatch):
  for name in ('predict', 'decode'):
    monkeypatch.setattr(vae_pictures._Vae, name, lambda *_: pytest.fail('nothing may be computed'))
  (tmp_path / 'file').touch()
  (tmp_path / 'folder.png').mkdir()
  commands = {
    'reconstruct': ['--images', photos],
    'sample': ['--prior', 'normal'],
    'interpolate': ['--images', photos],
  }
  for command, more in commands.items():
    words = [command, '--workdir', run, *more, '--out']
    assert 'a.webp: pictures are written as .png' in _fails(capsys, *words, tmp_path / 'a.webp')
    assert f'{tmp_path / "file"} is a file; choose' in _fails(capsys, *words, tmp_path / 'file/a.png')
    if command == 'reconstruct':
      assert f'{tmp_path / "file"} is a file; choose' in _fails(capsys, *words, tmp_path / 'file')
    else:
      assert 'folder.png: it is a folder' in _fails(capsys, *words, tmp_path / 'folder.png')
      assert 'file: pictures are written as .png' in _fails(capsys, *words, tmp_path / 'file')
  assert sorted(path.name for path in tmp_path.iterdir()) == ['file', 'folder.png']


def _readme_commands() -> list[str]:
  text = (REPOSITORY / 'README.md').read_text()
  blocks = re.findall(r'```sh\n(.*?)```', text, re.DOTALL)
  joined = '\n'.join(blocks).replace('\\\n', ' ')
  return [line.partition('  #')[0].strip() for line in joined.splitlines() if line.startswith('jaxface ')]


def test_the_readme_names_only_what_the_command_line_takes(capsys):
  from jaxface.cli import make_parser

  commands = _readme_commands()
  assert {shlex.split(command)[1] for command in commands} == {
    'prepare', 'parse', 'train', 'makeup', 'evaluate', 'score', 'reconstruct', 'sample', 'interpolate', 'ablation',
    'benchmark', 'convert', 'synthesize', 'compile',
  }  # fmt: skip
  for command in commands:
    _, rest = make_parser().parse_known_args(shlex.split(command)[1:])
    assert all(word.startswith('--config.') for word in rest), command
