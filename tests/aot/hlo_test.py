"""Exchanges are read from programs rightly: of TPU programs as their compiler writes them, and of real ones on CPUs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxface import filters
from jaxface.aot import hlo
from jaxface.parallel import BATCH_AXES, make_mesh
from jaxface.ssim import ssim

# Shortened to what is read; the way of writing is that of libtpu 0.0.42.
_TPU_PROGRAM = """
HloModule jit_step, is_scheduled=true

%fused_computation.1 (param_0: f32[144,64,3,144]) -> (f32[144,64,3,144], f32[144,256,3,144]) {
  %all-gather.11 = f32[144,256,3,144]{3,0,2,1:T(8,128)} all-gather(%param_0), channel_id=110, dimensions={1}
}

%async_collective_fusion.1821 (param_0: f32[144,64,3,144], param_1: f32[3,3]) -> f32[144,256,3,144] {
  %all-gather.13 = f32[144,256,3,144]{3,0,2,1:T(8,128)} all-gather(%param_0), channel_id=110, dimensions={1}
}

ENTRY %main.319_spmd (param.1: s32[], param.2: f32[512]) -> f32[] {
  %all-reduce = f32[32]{0:T(128)S(1)} all-reduce(%a), channel_id=1, metadata={op_name="jit(step)/norm/reduce_sum" id=18}
  %all-reduce.2 = (f32[512]{0:T(512)S(1)}, /*index=1*/bf16[3,3,64,128]{3,2,1,0}) all-reduce(%b, %c), channel_id=2
  %all-reduce-start.3 = f32[8]{0} all-reduce-start(%d), channel_id=3
  %all-reduce-done.3 = f32[8]{0} all-reduce-done(%all-reduce-start.3)
  %reduce-scatter.4 = f32[16,8]{1,0} reduce-scatter(%e), channel_id=4, replica_groups=mesh['a'=4,'b'=2] {'a'}
  %while.1 = (s32[], f32[8]) while(%t), condition=%c, body=%b
  %send = (f32[1,2,8]{2,1,0}, u32[], token[]) send(%f, %token), channel_id=5, is_host_transfer=true
  %recv = (f32[2,2,8]{2,1,0}, u32[], token[]) recv(%token), channel_id=6, is_host_transfer=true
}

%all-reduce-scatter.5 (input: bf16[64,128]) -> bf16[16,128] {
  %all-reduce.5 = bf16[64,128]{1,0:T(8,128)(2,1)} all-reduce(%input), channel_id=3, to_apply=%add
  %dynamic-slice.5 = bf16[16,128]{1,0:T(8,128)(2,1)} dynamic-slice(%all-reduce.5, %i, %zero)
}
"""


def test_what_a_tpu_program_exchanges():
  found = hlo.by_kind(hlo.collectives(_TPU_PROGRAM))
  gathered = 144 * 256 * 3 * 144 * 4
  # Written in two computations, but one exchange; among work in the second.
  assert found['all-gather'] == {'count': 1, 'bytes': gathered, 'overlapped': 1, 'overlapped_bytes': gathered}
  assert found['all-reduce'] == {
    'count': 3,
    'bytes': 32 * 4 + 512 * 4 + 3 * 3 * 64 * 128 * 2 + 8 * 4,
    'overlapped': 1,
    'overlapped_bytes': 8 * 4,
  }
  # What is cut: four devices' pieces; and what a fusion takes its part of, on a channel that a sum has, too.
  assert found['reduce-scatter']['count'] == 2
  assert found['reduce-scatter']['bytes'] == 4 * 16 * 8 * 4 + 64 * 128 * 2
  assert hlo.loops(_TPU_PROGRAM) == 1
  assert hlo.from_other_slices(_TPU_PROGRAM) == (1, 2 * 2 * 8 * 4)


def test_the_source_of_an_exchange_is_named():
  assert hlo.collectives(_TPU_PROGRAM)[1].source == 'jit(step)/norm/reduce_sum'


@pytest.fixture(scope='module')
def rows():
  return NamedSharding(make_mesh(1), P(BATCH_AXES))


def _exchanges(function, *shapes):
  return hlo.by_kind(hlo.collectives(jax.jit(function).lower(*shapes).compile().as_text()))


def test_a_sum_over_the_batch_is_one_reduction_of_its_size(rows):
  x = jax.ShapeDtypeStruct((16, 40), jnp.float32, sharding=rows)
  assert _exchanges(lambda x: x.sum(0), x) == {
    'all-reduce': {'count': 1, 'bytes': 160, 'overlapped': 0, 'overlapped_bytes': 0}
  }


@pytest.mark.parametrize('blur', [filters.blur_along_two_axes, filters.blur_by_taps])
def test_ssim_of_a_spread_batch_gathers_nothing(rows, monkeypatch, blur):
  # As accelerators compute it; the CPU's own form does gather, and nobody spreads a batch over CPUs for speed.
  monkeypatch.setattr('jaxface.ssim.blur', blur)
  x = jax.ShapeDtypeStruct((16, 24, 24, 3), np.float32, sharding=rows)
  found = _exchanges(jax.value_and_grad(lambda a, b: ssim(a, b, filter_size=9).mean()), x, x)
  assert set(found) == {'all-reduce'}
  assert found['all-reduce']['bytes'] < 100


def test_all_forms_of_the_blur_are_one():
  planes = jax.random.normal(jax.random.key(0), (40, 6, 33))
  window = filters.gaussian(9, 1.5)
  flat = filters.blur_as_two_matrices(planes, window)
  assert flat.shape == (32, 6, 25)
  for blur in (filters.blur_along_two_axes, filters.blur_by_taps):
    np.testing.assert_allclose(blur(planes, window), flat, atol=1e-6)


@pytest.mark.parametrize(
  'groups', ['[2,8]<=[16]', '{{0,1,2,3,4,5,6,7},{8,9,10,11,12,13,14,15}}', "mesh['a'=2,'b'=8] {'b'}"]
)
def test_what_is_cut_is_as_many_parts_as_there_are_in_a_group(groups):
  line = f'  %cut = (f8e4m3fn[3,4]{{1,0}}, f32[2]{{0}}) reduce-scatter(%a, %b), replica_groups={groups}, channel_id=1'
  (found,) = hlo.collectives(line)
  assert (found.kind, found.bytes) == ('reduce-scatter', 8 * (3 * 4 * 1 + 2 * 4))
