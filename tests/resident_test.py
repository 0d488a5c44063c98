"""A dataset that lies on the devices: each holds its part, and steps see what they would of a stream."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.aot import hlo
from jaxface.fields import take
from jaxface.parallel import JitEngine, make_mesh
from jaxface.state import TrainState

_RECORDS = 21


class _Averaging:
  """A task whose step is the mean of its pictures; half of every record's picture is computed once."""

  frozen = None
  batch_fields = ('image',)

  def init(self, key):
    return TrainState(jnp.zeros((), jnp.int32), {}, {}, {})

  def derive(self, frozen, records):
    return {'half': records['image'].astype(jnp.float32) / 2}

  def train_step(self, state, batch, key):
    return state.replace(step=state.step + 1), {'loss': batch['half'].mean(), 'first': batch['image'][0].sum()}


@pytest.fixture(scope='module')
def engine():
  engine = JitEngine(_Averaging(), seed=0, mesh=make_mesh(2))
  engine.put_dataset({'image': np.random.default_rng(0).integers(0, 256, (_RECORDS, 4, 4, 3), np.uint8)})
  return engine


def _batch(engine, index):
  return engine.put_stacked([{'index': np.array(index, np.int32), 'row': np.arange(len(index), dtype=np.int32)}])


def test_each_device_holds_its_part(engine):
  for name, size in (('image', 1), ('half', 4)):
    shards = engine.dataset[name].addressable_shards
    # 21 records are filled up to 24.
    assert {shard.data.nbytes for shard in shards} == {3 * 4 * 4 * 3 * size}, name


def test_what_is_computed_once_belongs_to_its_record(engine):
  np.testing.assert_array_equal(engine.dataset['half'], np.asarray(engine.dataset['image']) / np.float32(2))


def test_a_step_sees_the_records_that_its_batch_numbers(engine):
  index = [20, 0, 7, 7, 13, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12]
  images = np.asarray(engine.dataset['image'])
  _, metrics = engine.train_step(engine.init(), _batch(engine, index), engine.dataset)
  np.testing.assert_allclose(metrics['loss'], [(images[index] / 2).mean()], rtol=1e-6)
  np.testing.assert_array_equal(metrics['first'], [images[20].sum()])


def test_devices_exchange_the_batch_and_not_the_dataset(engine):
  batch = _batch(engine, range(16))
  program = engine.train_step.lower(engine.abstract_state, batch, engine.dataset).compile()
  exchanged = sum(each.bytes for each in hlo.collectives(program.as_text()))
  # Sixteen pictures and their halves, their numbers twice, and two sums.
  assert exchanged <= 16 * 4 * 4 * 3 * 5 + 4 * 16 * 4 + 64
  assert take(engine.dataset, {'index': jnp.arange(2), 'row': jnp.arange(2)})['image'].shape == (2, 4, 4, 3)
