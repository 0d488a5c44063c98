import json
import os

import pytest

from jaxface.cli import main
from jaxface.errors import UserError
from jaxface.prepare import find_prepared, prepare
from jaxface_data.synthetic_faces.synthetic_faces_dataset_builder import Builder


@pytest.mark.parametrize('size', [16, 144])
def test_any_size_and_count_can_be_prepared(size, tmp_path):
  summary = prepare('synthetic_faces', data_dir=tmp_path, size=size, count=10, seed=3)
  assert summary.name == f'synthetic_faces/faces_{size}'
  metadata = json.loads((find_prepared(tmp_path, summary.name) / 'metadata.json').read_text())
  assert (metadata['size'], metadata['count'], metadata['seed']) == (size, 10, 3)


@pytest.mark.parametrize('workers', [None, 3])
def test_the_number_of_processes_is_the_users(tmp_path, monkeypatch, workers):
  used = []
  generate = Builder._generate_examples
  monkeypatch.setattr(
    Builder, '_generate_examples', lambda self, indices: used.append(self.workers) or generate(self, indices)
  )
  prepare('synthetic_faces', data_dir=tmp_path, size=16, count=2, workers=workers)
  assert used == [workers or os.cpu_count()]


def test_another_seed_is_not_mistaken_for_the_same_faces(tmp_path):
  prepare('synthetic_faces', data_dir=tmp_path, size=16, count=10, seed=0)
  assert prepare('synthetic_faces', data_dir=tmp_path, size=16, count=10, seed=0).already
  with pytest.raises(UserError, match='overwrite'):
    prepare('synthetic_faces', data_dir=tmp_path, size=16, count=10, seed=1)
  prepare('synthetic_faces', data_dir=tmp_path, size=16, count=10, seed=1, overwrite=True)


@pytest.mark.parametrize('flags', ['', ' --makeup-pairs', ' --aligned', ' --makeup-pairs --aligned'])
def test_the_command_that_is_told_makes_what_was_missing(flags, tmp_path):
  name = f'{"makeup" if "pairs" in flags else "faces"}{"_aligned" if "aligned" in flags else ""}_16'
  command = f'prepare synthetic_faces --size 16{flags}'
  with pytest.raises(UserError, match=f'jaxface {command} --data-dir'):
    find_prepared(tmp_path, f'synthetic_faces/{name}')
  main([*command.split(), '--count', '1', '--data-dir', str(tmp_path)])
  assert find_prepared(tmp_path, f'synthetic_faces/{name}').is_dir()
