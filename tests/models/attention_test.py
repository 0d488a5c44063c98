"""Attention by a TPU's kernel against the plain form, interpreted; and where the kernel is taken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxface.aot.topology import get_topology, without_devices
from jaxface.meshes import BATCH_AXES, make_mesh
from jaxface.models.attention import attend, attend_by_flash


def _arrays(shape, dtype):
  keys = jax.random.split(jax.random.key(0), 3)
  return [jax.random.normal(key, shape, dtype) * scale for key, scale in zip(keys, (3, 3, 1), strict=True)]


def _gradients(function, arrays):
  weight = jnp.cos(jnp.arange(arrays[0].size, dtype=jnp.float32)).reshape(arrays[0].shape)
  return jax.jit(jax.grad(lambda *arrays: (function(*arrays) * weight).sum(), (0, 1, 2)))(*arrays)


@pytest.mark.parametrize(('dtype', 'share'), [('float32', 1e-5), ('bfloat16', 0.01)])
def test_the_kernel_is_the_plain_form_to_rounding(dtype, share):
  arrays = _arrays((2, 1024, 2, 32), dtype)
  exact = [array.astype(jnp.float32) for array in arrays]
  plain = jax.nn.dot_product_attention
  with pltpu.force_tpu_interpret_mode():
    found = [attend_by_flash(*arrays), *_gradients(attend_by_flash, arrays)]
  for ours, theirs in zip(found, [plain(*exact), *_gradients(plain, exact)], strict=True):
    assert float(jnp.abs(ours - theirs).mean()) < share * float(jnp.abs(theirs).mean())


@pytest.fixture
def as_users_multiply():
  """Tests ask for true float32 everywhere else."""
  with jax.default_matmul_precision('default'):
    yield


def _step(mesh):
  @jax.jit
  def gradient(x):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return jax.grad(lambda x: attend(x, x, x).astype(jnp.float32).sum())(x)

  return gradient


@pytest.mark.usefixtures('as_users_multiply')
@pytest.mark.parametrize(
  ('shape', 'dtype', 'by_kernel'),
  [
    ((8, 1024, 2, 32), 'bfloat16', True),
    ((8, 1024, 2, 32), 'float32', False),
    ((8, 256, 2, 32), 'bfloat16', False),  # Few positions.
    ((8, 1100, 2, 32), 'bfloat16', False),  # No whole blocks.
    ((8, 1024, 1, 256), 'bfloat16', False),  # A wide head.
    ((6, 1024, 2, 32), 'bfloat16', False),  # Rows that do not divide over the devices.
  ],
)
def test_tpus_take_the_kernel_for_many_positions(shape, dtype, by_kernel):
  gradient = _step(make_mesh(2, jax.devices()[:4]))
  program = gradient.trace(jax.ShapeDtypeStruct(shape, dtype)).lower(lowering_platforms=('tpu',)).as_text()
  assert ('tpu_custom_call' in program) == by_kernel


def test_asked_for_more_precision_xla_attends():
  gradient = _step(make_mesh(1, jax.devices()[:1]))
  x = jax.ShapeDtypeStruct((8, 1024, 2, 32), 'bfloat16')
  with jax.default_matmul_precision('highest'):
    assert 'tpu_custom_call' not in gradient.trace(x).lower(lowering_platforms=('tpu',)).as_text()


@pytest.mark.usefixtures('as_users_multiply')
def test_outside_a_step_xla_attends():
  x = jax.ShapeDtypeStruct((8, 1024, 2, 32), 'bfloat16')
  assert 'tpu_custom_call' not in jax.jit(attend).trace(x, x, x).lower(lowering_platforms=('tpu',)).as_text()


@pytest.mark.usefixtures('as_users_multiply')
def test_elsewhere_it_is_the_plain_form():
  arrays = _arrays((4, 1024, 1, 32), 'bfloat16')
  with jax.sharding.use_abstract_mesh(make_mesh(1, jax.devices()[:2]).abstract_mesh):
    found = jax.jit(attend)(*arrays)
  np.testing.assert_array_equal(found, jax.jit(jax.nn.dot_product_attention)(*arrays))


@pytest.mark.usefixtures('as_users_multiply')
def test_a_tpus_compiler_takes_the_kernel_as_it_is():
  pytest.importorskip('libtpu', reason="compiling for a TPU needs libtpu: pip install 'jaxface[tpu-aot]'")
  without_devices()
  mesh = make_mesh(1, get_topology('v5e:2x2').devices)
  x = jax.ShapeDtypeStruct((8, 1024, 2, 32), 'bfloat16', sharding=NamedSharding(mesh, P(BATCH_AXES)))
  program = _step(mesh).lower(x).compile().as_text()
  assert program.count('custom_call_target="tpu_custom_call"') == 3
  assert 'all-gather' not in program
