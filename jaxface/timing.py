"""How long compiled programs take, what they hold, and what share that is of what the device could do."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxface.chips import CHIPS


def time_repeatedly(call: Callable[[], Any], seconds: float) -> tuple[float, int]:
  """Seconds a call and number of calls; each call is queued behind the last, and the clock stops on the last result."""
  jax.block_until_ready(call())
  calls, result = 0, None
  start = time.perf_counter()
  while calls < 3 or time.perf_counter() - start < seconds:
    result = call()
    calls += 1
    if calls % 8 == 0:  # An endless queue of work would not be stopped by the clock.
      jax.block_until_ready(result)
  jax.block_until_ready(result)
  return (time.perf_counter() - start) / calls, calls


def time_in_turn(first: Callable[[], Any], second: Callable[[], Any], seconds: float) -> tuple[float, float]:
  """Median seconds of two calls made in turn, A B A B, so that both meet the same disturbances."""
  times: tuple[list[float], list[float]] = ([], [])
  for call in (first, second):
    jax.block_until_ready(call())
  start = time.perf_counter()
  while len(times[0]) < 3 or time.perf_counter() - start < seconds:
    for call, record in zip((first, second), times, strict=True):
      began = time.perf_counter()
      jax.block_until_ready(call())
      record.append(time.perf_counter() - began)
  return float(np.median(times[0])), float(np.median(times[1]))


def share_of_peak(flops_per_second_and_device: float, dtype: str) -> float | None:
  """What share such a rate is of the peak of the device that JAX computes on; None where that is not listed."""
  chip = CHIPS.get(jax.devices()[0].device_kind)
  return flops_per_second_and_device / chip.flops[dtype] if chip and dtype in chip.flops else None


def memory_gib(compiled: Any) -> float | None:
  """What a compiled program holds on a device; None where the backend does not say."""
  memory = compiled.memory_analysis()
  if memory is None:
    return None
  used = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
  return (used - memory.alias_size_in_bytes) / 2**30
