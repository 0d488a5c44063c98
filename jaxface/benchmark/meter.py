"""A row of a benchmark: what is timed, how many pictures it handles a second, how evenly, and at what cost."""

import dataclasses
import math
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxface.benchmark.work import count_flops
from jaxface.timing import memory_gib, share_of_peak, time_in_turn, time_repeatedly

Row = dict[str, Any]
Call = Callable[[], Any]

# Calls in a trace; of slow ones a single call.
_TRACED_CALLS, _TRACED_SECONDS = 3, 10.0


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled program and what it costs.

  Attributes:
    run: the program.
    devices: that it runs on.
    tflop: of a call on all devices together, in 10^12 as `count_flops` counts; NaN where that is not known.
    memory_gib: of a device; None where the backend does not say.
    compile_seconds: time it took to compile.
  """

  run: Callable[..., Any]
  devices: int
  tflop: float
  memory_gib: float | None
  compile_seconds: float


def compile_program(jitted: Any, *arguments: Any, devices: int = 1) -> Program:
  """Compiles a jitted function for `arguments`, to run on so many devices."""
  began = time.perf_counter()
  compiled = jitted.lower(*arguments).compile()
  seconds = time.perf_counter() - began
  # After the clock has stopped: what is traced is kept, and the count takes it from there.
  return Program(compiled, devices, count_flops(jitted, *arguments) / 1e12, memory_gib(compiled), seconds)


@dataclasses.dataclass(frozen=True)
class Meter:
  """Times calls and makes rows of them.

  Attributes:
    seconds: about how long to time each row.
    profile: folder for a trace of every row; None for none.
  """

  seconds: float
  profile: Path | None = None

  def row(
    self,
    timed: str,
    call: Call,
    *,
    images: int,
    program: Program | None = None,
    dtype: str = 'float32',
    steps: int | None = None,
    batch_size: int | None = None,
    devices: int | None = None,
    stream: bool = False,
  ) -> Row:
    """Times `call` over and over.

    'images_per_second' is by the median call, which other work on the machine hardly moves, and for a `stream`, which
    comes in bursts, by the mean.

    Args:
      timed: what is timed, in words; with batch size and devices it names the row.
      call: what to time; waited for by its result.
      images: pictures of a call.
      program: what it runs, where that is one program.
      dtype: number format of most of its work.
      steps: of a network or an optimizer in a call, where one would speak of steps.
      batch_size: default `images`.
      devices: default those of the program, or one.
      stream: see above.
    """
    times = _time(call, self.seconds)
    devices = devices or (program.devices if program else 1)
    per_call = times.mean if stream else times.median
    row = _row(timed, images, per_call, batch_size=batch_size, devices=devices) | times.told('')
    if steps is not None:
      row['steps_per_second'] = steps / per_call
    if program is not None:
      row |= _costs(program, per_call, dtype, steps)
    self._trace(row, call)
    return row

  def row_in_turn(
    self,
    timed: str,
    ours: Call,
    theirs: Call,
    *,
    peer: str,
    images: int,
    program: Program | None = None,
    dtype: str = 'float32',
  ) -> Row:
    """Times two calls A B A B, so that both meet the same disturbances; the row is that of `ours`.

    Beside what `row` says: '<peer>_seconds_per_call', and 'times_as_fast_as_<peer>' by the median calls.
    """
    mine, other = _time_in_turn(ours, theirs, self.seconds)
    row = _row(timed, images, mine.median, devices=program.devices if program else 1) | mine.told('')
    row |= other.told(f'{peer}_') | {f'times_as_fast_as_{peer}': other.median / mine.median}
    if program is not None:
      row |= _costs(program, mine.median, dtype, None)
    self._trace(row, lambda: (ours(), theirs()))
    return row

  def _trace(self, row: Row, call: Call) -> None:
    if self.profile is None:
      return
    calls = _TRACED_CALLS if row['seconds_per_call']['median'] * _TRACED_CALLS < _TRACED_SECONDS else 1
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # Python's own frames would bury the rest.
    with jax.profiler.trace(self.profile / slug(row), profiler_options=options):
      for number in range(calls):
        with jax.profiler.StepTraceAnnotation('call', step_num=number):
          jax.block_until_ready(call())


def slug(row: Row) -> str:
  """A row's name as a folder's."""
  name = f'{row["timed"]} batch {row["batch_size"]} on {row["devices"]}'
  return re.sub(r'[^a-z0-9]+', '_', name.lower()).strip('_')


def _row(timed: str, images: int, per_call: float, *, devices: int, batch_size: int | None = None) -> Row:
  return {
    'timed': timed,
    'batch_size': batch_size or images,
    'devices': devices,
    'images_per_second': images / per_call,
    'images_per_second_per_device': images / per_call / devices,
  }


def _costs(program: Program, per_call: float, dtype: str, steps: int | None) -> Row:
  known = math.isfinite(program.tflop)
  per_device = program.tflop * 1e12 / per_call / program.devices
  name, calls = ('model_tflop', 1) if steps is None else ('model_tflop_per_step', steps)
  return {
    name: program.tflop / calls if known else None,
    'share_of_peak': share_of_peak(per_device, dtype) if known else None,
    'memory_gib_per_device': program.memory_gib,
    'compile_seconds': program.compile_seconds,
  }


@dataclasses.dataclass(frozen=True)
class _Times:
  """Seconds of every single call, and of all over their number: less where one call overlaps with the next."""

  each: Sequence[float]
  mean: float
  calls: int

  @property
  def median(self) -> float:
    return float(np.median(self.each))

  def told(self, prefix: str) -> Row:
    """For a row: from p10 to p90 lie four calls in five."""
    low, middle, high = (float(value) for value in np.quantile(self.each, (0.1, 0.5, 0.9)))
    spread = {'median': middle, 'p10': low, 'p90': high, 'mean': self.mean}
    return {f'{prefix}seconds_per_call': spread, f'{prefix}calls': self.calls}


def _time(call: Call, seconds: float) -> _Times:
  stamps: list[float] = []
  waited_for = None

  def stamped() -> Any:
    # One call is always queued behind the one that is waited for: the device never waits for the clock.
    nonlocal waited_for
    result = call()
    jax.block_until_ready(waited_for)
    stamps.append(time.perf_counter())
    waited_for = result
    return result

  mean, calls = time_repeatedly(stamped, seconds)
  # The first call warms up. A stamp is when the call before was done or, where a call is only back when it is done,
  # this one: in both cases from one stamp to the next is a call.
  return _Times(np.diff(stamps[1:]), mean, calls)


def _time_in_turn(first: Call, second: Call, seconds: float) -> tuple[_Times, _Times]:
  records: tuple[list[float], list[float]] = ([], [])

  def timed(call: Call, record: list[float]) -> Call:
    def wrapped() -> Any:
      began = time.perf_counter()
      result = jax.block_until_ready(call())
      record.append(time.perf_counter() - began)
      return result

    return wrapped

  time_in_turn(*map(timed, (first, second), records), seconds)
  # The first of each warms up.
  mine, other = (_Times(each[1:], float(np.mean(each[1:])), len(each) - 1) for each in records)
  return mine, other
