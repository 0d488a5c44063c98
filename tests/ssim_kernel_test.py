"""The TPU's kernel for SSIM against the plain form: interpreted, spread over devices, and as a program for a TPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxface.aot.topology import get_topology, without_devices
from jaxface.errors import UserError
from jaxface.filters import gaussian
from jaxface.meshes import BATCH_AXES, make_mesh
from jaxface.ssim import ssim
from jaxface.ssim_kernel import Similarity, mean_ssim

_RANDOM = np.random.default_rng(0)
_A = _RANDOM.random((8, 20, 14)).astype(np.float32)
_B = np.clip(_A + 0.2 * _RANDOM.standard_normal(_A.shape), 0, 1).astype(np.float32)
_B[1] = _A[1]
_SIMILARITY = Similarity(tuple(map(float, gaussian(7, 1.5))), interpret=True)
_WEIGHT = jnp.arange(1.0, 9.0)


def _plain(a, b):
  return ssim(a[..., None], b[..., None], filter_size=7)


def _weighted(measure, a, b):
  return (measure(a, b) * _WEIGHT).sum()


@pytest.fixture(scope='module')
def kernel():
  return functools.partial(mean_ssim, _SIMILARITY)


@pytest.fixture(scope='module')
def expected():
  return jax.jit(jax.value_and_grad(functools.partial(_weighted, _plain), (0, 1)))(_A, _B)


def test_values_are_those_of_the_plain_form(kernel):
  np.testing.assert_allclose(kernel(_A, _B), jax.jit(_plain)(_A, _B), atol=2e-6)


def test_slopes_are_those_of_the_plain_form(kernel, expected):
  value, slopes = jax.jit(jax.value_and_grad(functools.partial(_weighted, kernel), (0, 1)))(_A, _B)
  np.testing.assert_allclose(value, expected[0], rtol=1e-5)
  for own, plain in zip(slopes, expected[1], strict=True):
    np.testing.assert_allclose(own, plain, atol=1e-4 * np.abs(plain).max())


def test_devices_work_on_their_own_planes(kernel, expected):
  mesh = make_mesh(2, jax.devices()[:4])
  spread = NamedSharding(mesh, P(BATCH_AXES))

  @functools.partial(jax.jit, in_shardings=(spread, spread), out_shardings=spread)
  def slope(a, b):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return jax.grad(functools.partial(_weighted, kernel), 1)(a, b)

  compiled = slope.lower(_A, _B).compile()
  assert 'all-gather' not in compiled.as_text()
  plain = expected[1][1]
  np.testing.assert_allclose(compiled(*jax.device_put((_A, _B), spread)), plain, atol=1e-4 * np.abs(plain).max())


def _fused(a, b):
  return ssim(a, b, filter_size=7, fused=True)


def test_elsewhere_it_is_the_plain_form():
  np.testing.assert_array_equal(jax.jit(_fused)(_A[..., None], _B[..., None]), jax.jit(_plain)(_A, _B))


def test_a_tpus_compiler_takes_the_kernel_as_it_is():
  pytest.importorskip('libtpu', reason="compiling for a TPU needs libtpu: pip install 'jaxface[tpu-aot]'")
  without_devices()
  mesh = make_mesh(1, get_topology('v5e:2x2').devices)
  pictures = jax.ShapeDtypeStruct((8, 20, 14, 3), jnp.float32, sharding=NamedSharding(mesh, P(BATCH_AXES)))

  @jax.jit
  def slope(a, b):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return jax.grad(lambda b: _fused(a, b).mean())(b)

  program = slope.lower(pictures, pictures).compile().as_text()
  assert program.count('custom_call_target="tpu_custom_call"') == 1
  assert 'all-gather' not in program


def test_what_the_kernel_cannot_do_is_said():
  with pytest.raises(UserError, match='fused kernel never has'):
    ssim(_A[..., None], _B[..., None], filter_size=7, fused=True, return_map=True)
