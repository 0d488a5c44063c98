"""Pictures of many shapes through one function, and what is kept of the programs."""

import numpy as np
import pytest

from jaxface import device_map
from jaxface.device_map import map_batches


def _mean(variables, picture):
  return picture.mean((1, 2)) + variables


@pytest.mark.parametrize(('shapes', 'told'), [(4, 0), (9, 1)])
def test_programs_of_many_shapes_are_not_all_kept(shapes, told, monkeypatch, caplog):
  monkeypatch.setattr(device_map, '_SHAPES', 4)
  device_map._compiled.cache_clear()
  rng = np.random.default_rng(0)
  pictures = [rng.integers(0, 256, (3, 3 + i), np.uint8) for i in range(shapes)] * 2
  found = list(map_batches(_mean, np.float32(1), ([(picture,)] for picture in pictures), 1))
  np.testing.assert_allclose(np.ravel(found), [1 + picture.mean() / 255 for picture in pictures], rtol=1e-6)
  assert device_map._compiled(_mean)[0]._cache_size() <= 4
  assert [record.levelname for record in caplog.records] == ['WARNING'] * told
