"""Work in threads with its order kept: what overlaps reading and writing files with a network."""

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from typing import TypeVar

T = TypeVar('T')
R = TypeVar('R')


def ordered_map(function: Callable[[T], R], items: Iterable[T], executor: Executor, ahead: int) -> Iterator[R]:
  """`map(function, items)` in the executor's threads, in order, at most `ahead` items ahead of the one asked for.

  `items` is read in the caller's thread. What is still waiting when the caller stops early is not begun.
  """
  pending = collections.deque()
  try:
    for item in items:
      pending.append(executor.submit(function, item))
      if len(pending) > ahead:  # executor.map would read all items at once, and hold all results.
        yield pending.popleft().result()
    while pending:
      yield pending.popleft().result()
  finally:
    for future in pending:
      future.cancel()


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
  """Lists of `size` items, the last one of what is left."""
  items = iter(items)
  while chunk := list(itertools.islice(items, size)):
    yield chunk
