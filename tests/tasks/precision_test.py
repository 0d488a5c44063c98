"""What bfloat16 must not do, in the train steps of all systems."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import pytest
from jax.extend import core

from jaxface.benchmark.training import make_engine, random_batch
from jaxface.speed import for_speed
from tests.smoke import experiment

# Nearest neighbours enlarged, and what attends to a handful.
_FEW = 8


def _sums(jaxpr: core.Jaxpr) -> Iterator[tuple[int, str]]:
  """How many terms each sum in bfloat16 has, and where it stands."""
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'reduce_sum' and equation.invars[0].aval.dtype == jnp.bfloat16:
      terms = equation.invars[0].aval.size // equation.outvars[0].aval.size
      yield terms, str(equation.source_info.name_stack)
    for inner in core.jaxprs_in_params(equation.params):
      yield from _sums(inner)


SYSTEMS = [
  ('vae', 'mask_ssim_l2'),
  ('bisenet', 'celebamask_hq'),
  ('vqgan', 'published'),
  ('scadm', 'published'),
  ('sdm', 'published'),
  ('ipmnet', 'code'),
  ('beautygan', 'code'),
]


@pytest.mark.parametrize(('system', 'variant'), SYSTEMS, ids=[system for system, _ in SYSTEMS])
def test_nothing_long_is_summed_in_bfloat16(system, variant):
  config = experiment(system, variant)
  config.model.dtype = 'bfloat16'
  engine = make_engine(for_speed(config), jax.devices()[:1])
  batch = random_batch(config, engine, config.batch_size)
  step = functools.partial(engine.task.train_step, key=jax.random.key(0))
  found = list(_sums(jax.make_jaxpr(step)(engine.abstract_state, batch).jaxpr))
  assert not [one for one in found if one[0] > _FEW]
