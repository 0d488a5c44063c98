"""The one error a user's own input can cause; the command line prints it as a single line and exits with status 2."""

from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
  """Wrong input. The message is one line: the offending value, what is legal, and the way out."""


def check_at_least(least: int, holder: object, *names: str, part: str = '') -> None:
  """Refuses numbers below `least` among the attributes of `holder`; `part`, such as 'augment.', goes before names."""
  for name in names:
    if getattr(holder, name) < least:
      raise UserError(f'{part}{name}={getattr(holder, name)}; it must be at least {least}')


def check_floats(pictures: Any, to: str) -> None:
  """Refuses whole numbers, such as a file's 0..255, as pictures given to `to`, which takes floats."""
  from jax import numpy as jnp

  if not jnp.issubdtype(pictures.dtype, jnp.floating):
    raise UserError(f'{pictures.dtype} pictures given to {to}; give floats, for instance uint8 divided by 255')


def some(names: Iterable[str], shown: int = 3) -> str:
  """The first few of a list that may be long, for a message: 'a, b, c and 4 more'."""
  names = list(names)
  more = f' and {len(names) - shown} more' if len(names) > shown else ''
  return ', '.join(names[:shown]) + more
