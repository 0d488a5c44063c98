"""Preparing: complete or not at all, the same again does nothing, and every mistake is told in one line."""

import argparse
import dataclasses
import errno
import fcntl
import importlib
import inspect
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from jaxface import parsing, pictures
from jaxface import prepare as prepare_lib
from jaxface.cli import main
from jaxface.errors import UserError


@pytest.fixture
def source(tmp_path):
  for i in range(10):
    image = np.random.default_rng(i).integers(0, 256, (12, 10, 3), np.uint8)
    pictures.write_picture(tmp_path / 'faces' / f'{i}.png', image)
    pictures.write_picture(tmp_path / 'maps' / f'{i}.png', image[..., 0] % 19)
  return tmp_path / 'faces'


@pytest.fixture
def data_dir(tmp_path):
  return tmp_path / 'prepared'


def files(folder):
  return sorted(str(path.relative_to(folder)) for path in folder.rglob('*'))


def ids(data_dir, name, split='train'):
  builder = tfds.builder_from_directory(prepare_lib.find_prepared(data_dir, name))
  return [str(record['id'], 'utf8') for record in builder.as_data_source(split)]


def test_summary(source, data_dir):
  (source / '3.png').write_bytes(b'')
  summary = prepare_lib.prepare(
    'face_folder', data_dir=data_dir, source=source, labels=source.parent / 'maps', name='mine'
  )
  folder = data_dir / 'face_folder' / 'mine' / '1.0.0'
  assert summary.name == 'face_folder/mine'
  assert summary.path == folder == prepare_lib.find_prepared(data_dir, 'face_folder/mine')
  assert summary.splits == {'train': 7, 'validation': 1, 'test': 1}
  assert summary.num_bytes == sum(path.stat().st_size for path in folder.glob('*array_record*')) > 0
  assert summary.picture_sizes == {'10x12': 9}
  assert summary.skipped == {'empty file': ['3.png']}
  assert summary.has_labels
  assert not summary.already
  for part in ('train 7, validation 1, test 1', '10x12 (9)', '1 empty file: 3.png', str(folder)):
    assert part in str(summary)
  assert '--config.data.name=face_folder/mine' in str(summary)
  assert 'is --label-order right?' not in str(dataclasses.replace(summary, label_order_doubtful=False))
  assert 'is --label-order right?' in str(dataclasses.replace(summary, label_order_doubtful=True))
  assert files(data_dir)[:2] == ['face_folder', 'face_folder/mine']
  assert len(list((data_dir / 'face_folder' / 'mine').iterdir())) == 1


def test_the_same_again_does_nothing(source, data_dir):
  first = prepare_lib.prepare('face_folder', data_dir=data_dir, source=source)
  times = {path: path.stat().st_mtime_ns for path in first.path.iterdir()}
  second = prepare_lib.prepare('face_folder', data_dir=data_dir, source=source)
  assert second.already
  assert (second.splits, second.num_bytes) == (first.splits, first.num_bytes)
  assert {path: path.stat().st_mtime_ns for path in first.path.iterdir()} == times


def test_other_options_need_overwrite(source, data_dir):
  prepare_lib.prepare('face_folder', data_dir=data_dir, source=source)
  with pytest.raises(UserError, match=r'count was None, now 2.*--overwrite, or use another --name'):
    prepare_lib.prepare('face_folder', data_dir=data_dir, source=source, count=2)
  assert len(ids(data_dir, 'face_folder/faces')) == 8
  assert not prepare_lib.prepare('face_folder', data_dir=data_dir, source=source, count=2, overwrite=True).already
  assert ids(data_dir, 'face_folder/faces') == ['0.png', '1.png']


@pytest.mark.parametrize('changed', ['faces/1.png', 'faces/10.png', 'maps/1.png'])
def test_a_changed_source_is_noticed(source, data_dir, changed):
  options = dict(data_dir=data_dir, source=source, labels=source.parent / 'maps')
  prepare_lib.prepare('face_folder', **options)
  pictures.write_picture(source.parent / changed, np.zeros((12, 10), np.uint8))
  pictures.write_picture(source.parent / 'maps' / '10.png', np.zeros((12, 10), np.uint8))
  with pytest.raises(UserError, match='the files of the source have changed since'):
    prepare_lib.prepare('face_folder', **options)


def test_failed_overwrite_keeps_the_old(source, data_dir):
  prepare_lib.prepare('face_folder', data_dir=data_dir, source=source)
  for path in source.iterdir():
    path.write_bytes(b'no picture')
  with pytest.raises(UserError, match=r'not one usable picture; not a picture in a known format: 10, e\.g\. 0\.png'):
    prepare_lib.prepare('face_folder', data_dir=data_dir, source=source, overwrite=True)
  assert len(ids(data_dir, 'face_folder/faces')) == 8


def test_failure_leaves_nothing(source, data_dir):
  (source / '0.png').rename(source.parent / '0.png')
  for path in source.iterdir():
    path.unlink()
  with pytest.raises(UserError, match='no pictures in this folder'):
    prepare_lib.prepare('face_folder', data_dir=data_dir, source=source)
  assert not data_dir.exists() or files(data_dir) == []


# With the argument `slow` each picture takes its time, so that the run can be killed in the middle of writing.
SCRIPT = """
import sys, time
from jaxface import pictures, prepare
if sys.argv[3:] == ['slow']:
  pictures.is_plain = lambda data: time.sleep(0.5)
prepare.prepare('face_folder', data_dir=sys.argv[1], source=sys.argv[2], workers=1, overwrite=True)
"""


@pytest.mark.parametrize('had_one', [False, True])
def test_a_killed_run_leaves_nothing_that_looks_prepared(source, data_dir, had_one):
  if had_one:
    prepare_lib.prepare('face_folder', data_dir=data_dir, source=source, count=3)
  command = [sys.executable, '-c', SCRIPT, str(data_dir), str(source), 'slow']
  process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
  wait_until(lambda: list(data_dir.rglob('*incomplete*/**/*array_record*')))
  with pytest.raises(UserError, match='another `jaxface prepare` is writing'):
    prepare_lib.prepare('face_folder', data_dir=data_dir, source=source)
  process.send_signal(signal.SIGKILL)
  process.wait()
  leftovers = list(data_dir.rglob('*incomplete*'))
  assert leftovers
  if had_one:
    assert len(ids(data_dir, 'face_folder/faces')) == 3
  else:
    with pytest.raises(UserError, match='not prepared'):
      prepare_lib.find_prepared(data_dir, 'face_folder/faces')
  prepare_lib.prepare('face_folder', data_dir=data_dir, source=source, overwrite=had_one)
  assert len(ids(data_dir, 'face_folder/faces')) == 8
  assert not list(data_dir.rglob('*incomplete*'))


def wait_until(condition, seconds=60):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.02)


def test_killed_between_the_renames_of_an_overwrite(source, data_dir):
  path = prepare_lib.prepare('face_folder', data_dir=data_dir, source=source, count=3).path
  aside = path.parent / 'incomplete.prepare' / 'replaced'
  aside.mkdir(parents=True)
  path.rename(aside / path.name)
  assert prepare_lib.prepare('face_folder', data_dir=data_dir, source=source, count=3).already
  assert not aside.exists()


def test_stopped_between_the_renames_of_an_overwrite(source, data_dir, monkeypatch):
  prepare_lib.prepare('face_folder', data_dir=data_dir, source=source, count=3)
  rename = Path.rename

  def stopped(self, target):
    if 'face_folder/faces/1.0.0' in str(self) and 'incomplete' in str(self):
      raise KeyboardInterrupt
    return rename(self, target)

  with monkeypatch.context() as context:
    context.setattr(Path, 'rename', stopped)
    with pytest.raises(KeyboardInterrupt):
      prepare_lib.prepare('face_folder', data_dir=data_dir, source=source, overwrite=True)
  # The restoring rename starts from the folder set aside; nothing else may be left.
  assert len(ids(data_dir, 'face_folder/faces')) == 3
  assert not list(data_dir.rglob('*incomplete*'))


def test_no_tensorflow_and_a_clean_output(source, data_dir):
  code = SCRIPT + "\nassert 'tensorflow' not in sys.modules"
  done = subprocess.run(
    [sys.executable, '-c', code, str(data_dir), str(source)], capture_output=True, text=True, check=True
  )
  assert done.stdout == ''
  # Nothing but the progress bar.
  assert re.sub(r'[^\n]*face_folder/faces:[^\n]*|\s', '', done.stderr) == ''


def run(*arguments):
  parser = argparse.ArgumentParser()
  prepare_lib.register(parser.add_subparsers(dest='command'))
  args = parser.parse_args(['prepare', *map(str, arguments)])
  return args.run(args)


def test_command_line(source, data_dir, capsys, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(data_dir))
  arguments = ['face_folder', '--source', source, '--labels', source.parent / 'maps', '--label-order', 'bisenet']
  arguments += ['--name', 'mine', '--count', '5', '--max-side', '6', '--workers', '1']
  assert run(*arguments) == 0
  assert 'train 5, validation 1, test 1, with label maps' in capsys.readouterr().out
  assert run(*arguments) == 0
  assert 'already prepared' in capsys.readouterr().out
  assert run(*arguments[:-4], '--overwrite') == 0
  options = json.loads((data_dir / 'face_folder/mine/1.0.0/metadata.json').read_text())['options']
  assert options == {
    'source': str(source), 'labels': str(source.parent / 'maps'), 'label_order': 'bisenet', 'count': 5,
    'max_side': None, 'parser': None,
  }  # fmt: skip


@pytest.mark.parametrize('dataset', prepare_lib.DATASETS)
def test_the_command_line_passes_every_option_of_a_dataset_and_has_its_defaults(dataset, monkeypatch):
  passed = {}
  monkeypatch.setattr(prepare_lib, 'prepare', lambda dataset, /, **options: passed.update(options))
  needed = {} if dataset == 'synthetic_faces' else {'source': 'somewhere'}
  assert run(dataset, *(word for name, value in needed.items() for word in (f'--{name}', value))) == 0
  make_config = importlib.import_module(f'jaxface_data.{dataset}.{dataset}_dataset_builder').make_config
  defaults = {name: parameter.default for name, parameter in inspect.signature(make_config).parameters.items()}
  if dataset == 'synthetic_faces':
    defaults['count'] = 20_000  # More than in Python, where it is for trying out.
  common = {'data_dir', 'overwrite', 'workers', 'parser'}
  assert {name: value for name, value in passed.items() if name not in common} == defaults | needed
  assert ('parser' in passed) == (dataset in prepare_lib.PARSED_DATASETS)


def test_command_line_celeba(tmp_path, capsys, parse_by):
  folder = tmp_path / 'celeba' / 'img_align_celeba'
  for i in range(1, 4):
    pictures.write_picture(folder / f'{i:06d}.jpg', np.full((218, 178, 3), i, np.uint8))
  lines = [f'{i:06d}.jpg {i - 1}' for i in range(1, 4)]
  (tmp_path / 'celeba' / 'list_eval_partition.txt').write_text('\n'.join(lines))
  assert run('celeba_masks', '--source', tmp_path / 'celeba', '--data-dir', tmp_path / 'out') == 0
  assert 'train 1, validation 1, test 1, without label maps' in capsys.readouterr().out
  parse_by(FakeParser())
  words = ['--source', tmp_path / 'celeba', '--data-dir', tmp_path / 'out', '--parser', 'workdir', '--overwrite']
  assert run('celeba_masks', *words) == 0
  assert 'train 1, validation 1, test 1, with label maps' in capsys.readouterr().out


def test_command_line_makeup_transfer(tmp_path, capsys, parse_by):
  source, out = tmp_path / 'sample', tmp_path / 'out'
  for side in 'AB':
    for i in range(2):
      pictures.write_picture(source / f'test{side}' / f'{i}.png', np.full((12, 12, 3), i, np.uint8))
      pictures.write_picture(source / f'test{side}_mask' / f'{i}.png', np.tri(12, dtype=np.uint8) * 255)
  words = ['makeup_transfer', '--source', source, '--data-dir', out]
  assert run(*words) == 0
  printed = capsys.readouterr().out
  assert 'test_makeup 2, test_non_makeup 2, with label maps' in printed
  assert 'note        label maps are made of masks' in printed
  with pytest.raises(UserError, match='max_side was None, now 6.*or use another --name'):
    run(*words, '--max-side', '6')
  with pytest.raises(UserError, match='prepare makeup_transfer --source DIR --name mine'):
    prepare_lib.find_prepared(out, 'makeup_transfer/mine')
  with pytest.raises(UserError, match='test_makeup=1: .*has its own split'):
    run(*words, '--test-makeup', '1', '--test-non-makeup', '0')
  parse_by(FakeParser())
  assert run(*words, '--parser', 'workdir', '--overwrite') == 0
  printed = capsys.readouterr().out
  assert 'parsed by   parser one' in printed
  assert 'note' not in printed
  assert ids(out, 'makeup_transfer/ipmnet', 'test_makeup') == ['testA/0.png', 'testA/1.png']


def test_disk_space(source, data_dir, monkeypatch):
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: types.SimpleNamespace(free=100))
  with pytest.raises(UserError, match=r'needs at least .* GB, 0\.0 GB are free'):
    prepare_lib.prepare('face_folder', data_dir=data_dir, source=source)
  assert not data_dir.exists() or files(data_dir) == []


@pytest.mark.parametrize('error', [
  RuntimeError('write() failed: No space left on device'), sqlite3.OperationalError('database or disk is full'),
])  # fmt: skip
def test_a_disk_that_becomes_full_is_told_in_one_line(source, data_dir, monkeypatch, capsys, error):
  def full(*args, **kwargs):
    raise error

  monkeypatch.setattr(tfds.core.DatasetBuilder, 'download_and_prepare', full)
  assert main(['prepare', 'face_folder', '--source', str(source), '--data-dir', str(data_dir)]) == 2
  assert re.search(r'error: the disk is full \(.*faces\); make room and say the same again\n$', capsys.readouterr().err)
  assert files(data_dir) == []


def test_other_errors_of_the_writer_are_not_taken_for_a_full_disk(source, data_dir, monkeypatch):
  def broken(*args, **kwargs):
    raise RuntimeError('write() failed: Input/output error')

  monkeypatch.setattr(tfds.core.DatasetBuilder, 'download_and_prepare', broken)
  with pytest.raises(RuntimeError, match='Input/output error'):
    prepare_lib.prepare('face_folder', data_dir=data_dir, source=source)


def test_the_lock_goes_with_the_run(source, data_dir):
  folder = prepare_lib.prepare('face_folder', data_dir=data_dir, source=source).path.parent
  handle = os.open(folder, os.O_RDONLY)
  fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
  with pytest.raises(UserError, match='another'):
    prepare_lib.prepare('face_folder', data_dir=data_dir, source=source)
  os.close(handle)
  assert prepare_lib.prepare('face_folder', data_dir=data_dir, source=source).already


def test_a_file_system_without_locks(source, data_dir, monkeypatch):
  def no_locks(handle, operation):
    raise OSError(errno.ENOLCK, 'No locks available')

  monkeypatch.setattr(fcntl, 'flock', no_locks)
  assert prepare_lib.prepare('face_folder', data_dir=data_dir, source=source).splits['train'] == 8


def test_find_prepared_lists_what_is_there_and_the_command(source, data_dir):
  with pytest.raises(UserError, match=r'there is: nothing\); make it by `jaxface prepare synthetic_faces --size 144'):
    prepare_lib.find_prepared(data_dir, 'synthetic_faces/faces_144')
  prepare_lib.prepare('face_folder', data_dir=data_dir, source=source)
  with pytest.raises(UserError, match=r'there is: face_folder/faces\); .*face_folder --source DIR --name mine'):
    prepare_lib.find_prepared(data_dir, 'face_folder/mine')
  with pytest.raises(
    UserError, match=r'jaxface prepare \{synthetic_faces,celeba_masks,celebamask_hq,face_folder,makeup_t'
  ):
    prepare_lib.find_prepared(data_dir, 'celebs')


def test_find_prepared_takes_the_newest_version(source, data_dir):
  path = prepare_lib.prepare('face_folder', data_dir=data_dir, source=source).path
  for version in ('1.10.0', '1.9.0', '2.0.0'):
    shutil.copytree(path, path.with_name(version))
  (path.with_name('2.0.0') / 'dataset_info.json').unlink()
  assert prepare_lib.find_prepared(data_dir, 'face_folder/faces').name == '1.10.0'


def test_default_data_dir(monkeypatch):
  monkeypatch.delenv('TFDS_DATA_DIR', raising=False)
  assert prepare_lib.default_data_dir() == Path.home() / 'tensorflow_datasets'
  monkeypatch.setenv('TFDS_DATA_DIR', '/somewhere')
  assert prepare_lib.default_data_dir() == Path('/somewhere')


def test_wrong_arguments(source, tmp_path, monkeypatch):
  (tmp_path / 'file').touch()
  with pytest.raises(UserError, match='workers=0'):
    prepare_lib.prepare('face_folder', data_dir=tmp_path, source=source, workers=0)
  with monkeypatch.context() as context:
    context.setenv('TFDS_DATA_DIR', 'gs://bucket/data')
    context.chdir(tmp_path)
    with pytest.raises(UserError, match=r"data_dir='gs:/bucket/data': not a local folder"):
      prepare_lib.prepare('face_folder', source=source)
    assert not (tmp_path / 'gs:').exists()
  for dataset, data_dir, why in [
    ('celebs', tmp_path, "unknown dataset 'celebs'; choose from synthetic_faces"),
    ('face_folder', 'gs://bucket/data', 'not a local folder'),
    ('face_folder', tmp_path / 'file', 'cannot write into'),
  ]:
    with pytest.raises(UserError, match=why):
      prepare_lib.prepare(dataset, data_dir=data_dir, source=source)


class FakeParser:
  """Takes a picture's red for its classes; stopped by the user after `patience` batches."""

  batch_size = 2

  def __init__(self, name='one', patience=None):
    self.identity, self.origin = f'parser {name}', {'name': name}
    self.patience, self.parsed = patience, 0
    self._lock = threading.Lock()

  def __call__(self, images):
    with self._lock:
      if self.patience is not None and self.parsed >= self.batch_size * self.patience:
        raise KeyboardInterrupt
      self.parsed += len(images)
    return [image[..., 0] % 19 for image in images]


@pytest.fixture
def parse_by(monkeypatch):
  """Makes `--parser` load the parser given."""

  def replace(parser):
    monkeypatch.setattr(parsing, 'load_parser', lambda workdir: parser)
    return parser

  return replace


def label_maps(data_dir):
  builder = tfds.builder_from_directory(prepare_lib.find_prepared(data_dir, 'face_folder/faces'))
  return {str(r['id'], 'utf8'): r['label'] for split in builder.info.splits for r in builder.as_data_source(split)}


def test_a_parser_makes_the_label_maps_and_is_recorded(source, data_dir, parse_by, capsys):
  parser = parse_by(FakeParser())
  arguments = ('face_folder', '--source', source, '--data-dir', data_dir, '--parser', 'workdir')
  assert run(*arguments) == 0
  out = capsys.readouterr().out
  assert 'with label maps' in out
  assert 'parsed by   parser one' in out
  found = label_maps(data_dir)
  assert parser.parsed == len(found) == 10
  for name, label in found.items():
    np.testing.assert_array_equal(label[..., 0], pictures.read_picture(source / name)[..., 0] % 19)
  metadata = json.loads((data_dir / 'face_folder/faces/1.0.0/metadata.json').read_text())
  assert metadata['parser'] == {'name': 'one'}
  assert len(files(data_dir / 'face_folder' / 'faces')) == 1 + len(files(data_dir / 'face_folder/faces/1.0.0'))
  # The same again, by the same parser, does nothing; another parser makes another dataset.
  assert run(*arguments) == 0
  assert parser.parsed == 10
  parse_by(FakeParser('two'))
  with pytest.raises(UserError, match="parser was 'parser one', now 'parser two'"):
    run(*arguments)
  with pytest.raises(UserError, match="parser was 'parser one', now None"):
    run(*arguments[:-2])


def test_an_interrupted_parser_goes_on_where_it_was(source, data_dir, tmp_path, parse_by):
  (source / '4.png').write_bytes(b'')
  options = dict(data_dir=data_dir, source=source, parser='workdir', workers=1)
  stopped = parse_by(FakeParser(patience=2))
  with pytest.raises(KeyboardInterrupt):
    prepare_lib.prepare('face_folder', **options)
  assert stopped.parsed == 4
  assert files(data_dir) == ['face_folder', 'face_folder/faces', 'face_folder/faces/parsed.prepare']
  second = parse_by(FakeParser())
  prepare_lib.prepare('face_folder', **options)
  assert second.parsed == 9 - 4
  assert [path.name for path in (data_dir / 'face_folder/faces').iterdir()] == ['1.0.0']

  parse_by(FakeParser())
  straight = prepare_lib.prepare('face_folder', **options | {'data_dir': tmp_path / 'straight'})
  whole, pieced = label_maps(tmp_path / 'straight'), label_maps(data_dir)
  assert list(whole) == list(pieced)
  assert straight.splits == {'train': 7, 'validation': 1, 'test': 1}
  for name, label in whole.items():
    np.testing.assert_array_equal(label, pieced[name])


@pytest.mark.parametrize('change', ['parser', 'picture', 'max_side'])
def test_what_was_parsed_otherwise_is_parsed_again(source, data_dir, parse_by, change):
  options = dict(data_dir=data_dir, source=source, parser='workdir', workers=1)
  parse_by(FakeParser(patience=3))
  with pytest.raises(KeyboardInterrupt):
    prepare_lib.prepare('face_folder', **options)
  if change == 'picture':
    for path in source.iterdir():
      pictures.write_picture(path, 255 - pictures.read_picture(path))
  second = parse_by(FakeParser('two' if change == 'parser' else 'one'))
  prepare_lib.prepare('face_folder', **options, max_side=8 if change == 'max_side' else None)
  assert second.parsed == 10


def test_a_parser_in_vain(source, data_dir, parse_by):
  parse_by(FakeParser())
  with pytest.raises(UserError, match=r'--labels .*maps and --parser p: label maps come from one of them'):
    prepare_lib.prepare('face_folder', data_dir=data_dir, source=source, labels=source.parent / 'maps', parser='p')
  with pytest.raises(UserError, match='synthetic_faces has label maps of its own; --parser is for celeba_masks, face'):
    prepare_lib.prepare('synthetic_faces', data_dir=data_dir, parser='p', count=10)
  for path in source.iterdir():
    path.write_bytes(b'')
  with pytest.raises(UserError, match='not one usable picture'):
    prepare_lib.prepare('face_folder', data_dir=data_dir, source=source, parser='p')
  assert not data_dir.exists() or files(data_dir) == []
