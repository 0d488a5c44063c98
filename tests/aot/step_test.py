"""A step compiled for devices that are here, in place of a pod: what is asked of the compiler, and what it holds."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxface.aot import step
from jaxface.aot.step import Memory, bytes_per_device, compile_step
from jaxface.aot.topology import Topology
from jaxface.chips import CHIPS
from jaxface.errors import UserError
from jaxface.meshes import make_mesh
from tests.smoke import TINY, make_tiny_or_task, smoke_config

# A picture and its mask.
_PIXELS = TINY * TINY * (3 + 1)


@pytest.fixture
def here(monkeypatch):
  """`compile_step` for four CPU devices in the place of v5e chips, with so many bytes each."""
  monkeypatch.setattr(step, 'make_task', make_tiny_or_task)

  def compile_here(memory=16 * 2**30, what='train', **changes):
    config = smoke_config('mask_l1')
    config.model.image_size = TINY
    config.update_from_flattened_dict(changes)
    chip = dataclasses.replace(CHIPS['TPU v5 lite'], memory=memory)
    return compile_step(config, Topology('v5e:2x2', (2, 2), 1, jax.devices()[:4], chip), step=what)

  return compile_here


def test_what_a_device_holds_is_counted_by_its_part():
  mesh = make_mesh(4, jax.devices()[:8])
  leaf = lambda dtype, *spec: jax.ShapeDtypeStruct((8, 6), dtype, sharding=NamedSharding(mesh, P(*spec)))
  assert bytes_per_device([leaf(jnp.float32), leaf(jnp.bfloat16, 'fsdp')]) == 8 * 6 * 4 + 2 * 6 * 2


def test_what_is_given_counts_with_the_padding_of_its_layouts():
  memory = Memory(1, 2, 3, 4, 5, given=20, temporaries=7, program=8, available=0)
  assert memory.total == 35


def test_what_fits_by_a_byte_does_and_is_asked_by_the_step(here):
  train = here()
  assert train.fits
  # Two rows a device: pictures and masks of a byte a number, and the rows' numbers.
  assert train.memory.batch == 2 * (_PIXELS + 4)
  parts = ('parameters', 'optimizer', 'frozen', 'other', 'batch')
  assert train.memory.given >= sum(getattr(train.memory, part) for part in parts)
  assert train.estimate.compute == pytest.approx(train.flops / 197e12)
  assert here(memory=train.memory.total).fits
  assert not here(memory=train.memory.total - 1).fits
  # Evaluation knows no pieces, has no optimizer, and takes the rows' weights.
  with pytest.raises(UserError, match='batch_size=4 does not divide over 8 parts'):
    here(batch_size=4, accumulate_steps=2)
  evaluated = here(what='evaluate', batch_size=4, accumulate_steps=2)
  assert (evaluated.memory.batch, evaluated.memory.optimizer) == (_PIXELS + 4 + 4, 0)


def test_what_the_compiler_has_no_room_for_is_read_from_its_words(here, monkeypatch):
  told = 'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 24.50G of 15.75G hbm. Exceeded by 8.75G.'

  def refuse(*_, **__):
    raise jax.errors.JaxRuntimeError(told)

  monkeypatch.setattr(jax.stages.Lowered, 'compile', refuse)
  memory = here().memory
  assert (memory.total, memory.available) == (24.5 * 2**30, 15.75 * 2**30)
  told = 'INTERNAL: memory 1G of 2G'
  with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'):
    here()
