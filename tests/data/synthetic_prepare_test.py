import json

import pytest

from jaxface.errors import UserError
from jaxface.prepare import find_prepared, prepare


@pytest.mark.parametrize('size', [16, 144])
def test_any_size_and_count_can_be_prepared(size, tmp_path):
  summary = prepare('synthetic_faces', data_dir=tmp_path, size=size, count=10, seed=3)
  assert summary.name == f'synthetic_faces/faces_{size}'
  metadata = json.loads((find_prepared(tmp_path, summary.name) / 'metadata.json').read_text())
  assert (metadata['size'], metadata['count'], metadata['seed']) == (size, 10, 3)


def test_another_seed_is_not_mistaken_for_the_same_faces(tmp_path):
  prepare('synthetic_faces', data_dir=tmp_path, size=16, count=10, seed=0)
  assert prepare('synthetic_faces', data_dir=tmp_path, size=16, count=10, seed=0).already
  with pytest.raises(UserError, match='overwrite'):
    prepare('synthetic_faces', data_dir=tmp_path, size=16, count=10, seed=1)
  prepare('synthetic_faces', data_dir=tmp_path, size=16, count=10, seed=1, overwrite=True)
