"""The Inception checkpoint, there and back."""

import jax
import numpy as np
import pytest

from jaxface.convert import inception
from jaxface.errors import UserError
from tests.golden import load


@pytest.fixture(scope='module')
def state():
  return load('inception_fid/pool3')[1]


def test_going_there_and_back_computes_the_same(state):
  assert 'fc.weight' in state
  _, variables = inception.from_reference(state)
  _, again = inception.from_reference(inception.to_reference(variables))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), variables, again)


def test_what_does_not_fit_is_listed(state):
  broken = dict(state)
  del broken['Mixed_7c.branch_pool.bn.running_var']
  broken['AuxLogits.fc.bias'] = np.zeros(1000)
  with pytest.raises(UserError, match=r'1 missing: Mixed_7c\S+running_var; 1 unexpected: AuxLogits.fc.bias'):
    inception.from_reference(broken)
