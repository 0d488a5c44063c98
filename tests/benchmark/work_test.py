"""The work of a program, against the same counted by hand; loops and devices change nothing."""

import functools
import math

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxface.benchmark import training
from jaxface.benchmark.meter import compile_program
from jaxface.benchmark.training import make_engine, random_batch
from jaxface.benchmark.work import count_flops
from jaxface.conv import conv3x3
from tests.smoke import TINY, make_tiny_or_task, smoke_config

SIDE = 8
PRODUCT = 2 * SIDE**3
X = jax.ShapeDtypeStruct((SIDE, SIDE), jnp.float32)


def test_work_grows_with_the_batch_where_a_cpu_loops_over_it():
  def gradients(batch):
    x, kernel = jnp.ones((batch, 64, 64, 64)), jnp.ones((3, 3, 64, 64))
    # Squared, so that a gradient needs the result too.
    loss = lambda x, kernel: jnp.square(conv3x3(x, kernel)).sum()
    return compile_program(jax.jit(jax.grad(loss, argnums=(0, 1))), x, kernel)

  many = gradients(16)
  assert ' while(' in many.run.as_text()
  one = 3 * 2 * 64 * 64 * (3 * 64 - 2) ** 2
  assert many.tflop * 1e12 == pytest.approx(16 * one)
  assert gradients(1).tflop * 1e12 == pytest.approx(one)


@pytest.mark.parametrize(
  ('x', 'kernel', 'options'),
  [
    ((2, 9, 7, 4), (3, 3, 4, 6), {'window_strides': (1, 1), 'padding': 'SAME'}),
    ((2, 9, 7, 4), (3, 2, 4, 6), {'window_strides': (2, 3), 'padding': ((1, 2), (0, 1))}),
    ((2, 5, 4, 4), (4, 4, 4, 6), {'window_strides': (1, 1), 'padding': ((2, 3), (-1, 2)), 'lhs_dilation': (2, 3)}),
    ((2, 9, 7, 4), (2, 2, 4, 6), {'window_strides': (1, 2), 'padding': 'SAME', 'rhs_dilation': (3, 2)}),
    ((2, 9, 7, 4), (3, 3, 2, 6), {'window_strides': (1, 1), 'padding': 'SAME', 'feature_group_count': 2}),
    ((6, 9, 7, 4), (3, 3, 4, 6), {'window_strides': (1, 1), 'padding': 'SAME', 'batch_group_count': 3}),
  ],
)
def test_convolutions_count_what_meets_no_zero(x, kernel, options):
  convolve = functools.partial(lax.conv_general_dilated, dimension_numbers=('NHWC', 'HWIO', 'NHWC'), **options)
  x, kernel = jnp.ones(x), jnp.ones(kernel)
  # The sum of products of ones is their number.
  expected = 2 * float(convolve(x, kernel).sum())
  assert count_flops(convolve, x, kernel) == expected
  # Its gradients are the same sum, written otherwise.
  backward = lambda x, kernel: jax.grad(lambda x, kernel: convolve(x, kernel).sum(), argnums=(0, 1))(x, kernel)
  assert count_flops(backward, x, kernel) == 2 * expected


def test_products_in_loops_branches_and_calls():
  twice = jax.checkpoint(lambda x: jnp.tanh(x @ x) @ x)
  for function, products in (
    (lambda x: jnp.einsum('ij,bjk->bik', x, jnp.ones((5, SIDE, SIDE))), 5),
    (lambda x: lax.fori_loop(0, 7, lambda _, x: x @ x, x), 7),
    (lambda x: lax.map(lambda row: x @ row, x).sum() + lax.scan(lambda x, _: (x @ x, x), x, length=3)[0], 4),
    # Asked for twice, or by nothing, or again to save memory.
    (lambda x: x @ x + jax.jit(jnp.dot)(x, x), 1),
    (lambda x: (x @ (x + 1), x + 1)[1], 0),
    (jax.grad(lambda x: twice(twice(x)).sum()), 4 + 8 - 1),
    (lambda x: lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x @ (x + 1), x), 1),
    (lambda x: lax.platform_dependent(x, cpu=lambda x: x @ x @ x, tpu=lambda x: x, default=lambda x: x @ x), 1),
  ):
    assert count_flops(function, X) == products * PRODUCT


def test_what_cannot_be_known_is_not_a_number():
  for function in (
    lambda x: lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ x, x),
    lambda x: lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x, x),
    lambda x: lax.platform_dependent(x, cpu=lambda x: x @ x, cuda=lambda x: x),
  ):
    assert math.isnan(count_flops(function, X))
  assert count_flops(lambda x: lax.while_loop(lambda x: x.sum() < 1, lambda x: x + 1, x), X) == 0


def test_parts_of_devices_are_summed():
  mesh = jax.make_mesh((4, 2), ('data', 'other'), axis_types=(AxisType.Auto, AxisType.Auto))
  product = lambda x, kernel: x @ kernel
  spread = lambda **options: jax.jit(
    jax.shard_map(product, mesh=mesh, in_specs=(P('data'), P()), out_specs=P('data'), **options)
  )
  assert count_flops(spread(axis_names={'data'}), X, X) == PRODUCT
  assert count_flops(jax.pmap(product), jnp.ones((8, 3, SIDE)), jnp.ones((8, SIDE, SIDE))) == 3 * PRODUCT


def test_a_train_step_is_the_same_work_on_one_device_on_all_and_by_several(monkeypatch):
  monkeypatch.setattr(training, 'make_task', make_tiny_or_task)
  config = smoke_config('mask_ssim_l2')
  config.model.image_size = TINY
  config.batch_size = 16

  def work(devices, mode='jit', **changes):
    changed = config.copy_and_resolve_references()
    changed.update(changes)
    engine = make_engine(changed, jax.devices()[:devices], mode)
    batch = random_batch(changed, engine, changed.batch_size)
    del batch['weight']
    return count_flops(engine.train_step, engine.abstract_state, engine.put_stacked([batch] * 2), None)

  one = work(1)
  assert one > 0
  assert work(8) == one
  assert work(8, 'pmap') == one
  assert work(1, accumulate_steps=2) == one
