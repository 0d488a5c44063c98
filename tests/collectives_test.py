"""What devices tell each other under `pmap` is what one device knows."""

import jax
import numpy as np
import pytest

from jaxface.collectives import next_rows


@pytest.mark.parametrize('rows_a_device', [1, 3])
def test_the_next_row_may_lie_on_the_next_device(rows_a_device):
  devices = jax.device_count()
  assert devices > 1
  x = np.random.default_rng(0).standard_normal((devices * rows_a_device, 2)).astype(np.float32)
  found = jax.pmap(lambda rows: next_rows(rows, 'devices'), 'devices')(x.reshape(devices, rows_a_device, 2))
  np.testing.assert_array_equal(found.reshape(x.shape), np.roll(x, -1, axis=0))
  np.testing.assert_array_equal(next_rows(x, None), np.roll(x, -1, axis=0))
