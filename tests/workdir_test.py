"""Which runs may go on with which configuration."""

import pytest
from ml_collections import ConfigDict

from jaxface.workdir import differences


@pytest.mark.parametrize(
  ('new', 'told'),
  [
    ({'remat': False}, []),
    ({'remat': True}, ['model.remat: None -> True']),
    ({'dim': 8}, ['model.dim: 4 -> 8']),
    ({'dim': 0}, ['model.dim: 4 -> 0']),
  ],
)
def test_an_option_that_is_off_where_it_is_new_makes_no_difference(new, told):
  old, new = (ConfigDict({'model': {'dim': 4, **more}}) for more in ({}, new))
  assert differences(old, new) == told
  assert [line.split(':')[0] for line in differences(new, old)] == [line.split(':')[0] for line in told]
