"""The estimate of a step's time: each part against the chip's peak, by hand."""

import math

import pytest

from jaxface.aot.hlo import Collective
from jaxface.aot.roofline import roofline
from jaxface.chips import CHIPS

V5E = CHIPS['TPU v5 lite']


def _estimate(flops=0.0, moved=0.0, exchanges=(), torus=(4, 4), **options):
  return roofline(
    flops=flops, bytes_moved=moved, exchanges=exchanges, chip=V5E, dtype='bfloat16', torus=torus, **options
  )


def test_a_second_of_arithmetic_hides_half_a_second_of_memory():
  found = _estimate(flops=197e12, moved=0.5 * 819e9)
  assert found.seconds == pytest.approx(1)
  assert found.bound == 'compute'
  assert found.memory == pytest.approx(0.5)


def test_a_large_sum_goes_twice_over_all_links():
  found = _estimate(exchanges=[Collective('all-reduce', 10**9, False, '')])
  # Two neighbours along each of two axes.
  assert found.seconds == pytest.approx(2 * 1e9 / (4 * 45e9))
  assert found.bound == 'exchange'


def test_a_small_exchange_takes_its_hops():
  found = _estimate(exchanges=[Collective('all-gather', 4, False, '')] * 3, torus=(16, 8))
  assert found.exposed == pytest.approx(3 * (8 + 4) * V5E.hop)


def test_two_chips_have_one_link():
  found = _estimate(exchanges=[Collective('all-gather', 10**9, False, '')], torus=(2, 1))
  assert found.exposed == pytest.approx(1e9 / 45e9)


def test_what_runs_beside_work_costs_only_what_it_takes_longer():
  hidden = [Collective('all-reduce', 10**9, True, '')]
  assert _estimate(moved=819e9, exchanges=hidden).seconds == pytest.approx(1)
  assert _estimate(exchanges=hidden).seconds == pytest.approx(2e9 / (4 * 45e9))


def test_one_chip_exchanges_nothing_and_nodes_of_one_chip_do_as_neighbours():
  assert _estimate(exchanges=[], torus=(1, 1)).seconds == 0
  assert _estimate(exchanges=[Collective('all-reduce', 10**9, False, '')], torus=(1,)).exposed == pytest.approx(2 / 45)


def test_a_peak_that_is_not_listed_is_unknown():
  assert math.isnan(V5E.peak('float8'))
