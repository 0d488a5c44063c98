"""Comparing a checkpoint's tensors with what a network needs."""

from collections.abc import Iterable, Mapping

import numpy as np

from jaxface.errors import UserError

_SHOWN = 4


def _some(names: Iterable[str]) -> str:
  names = list(names)
  more = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
  return ', '.join(names[:_SHOWN]) + more


def check(system: str, state: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]) -> None:
  """Raises one `UserError` that lists the tensors of `state` that are missing, unexpected or misshapen.

  Args:
    system: for the message.
    state: the checkpoint, name -> array.
    expected: name -> shape of every tensor the network needs.
  """
  missing = [name for name in expected if name not in state]
  unexpected = [name for name in state if name not in expected]
  misshapen = [
    f'{name} {tuple(state[name].shape)} instead of {shape}'
    for name, shape in expected.items()
    if name in state and tuple(state[name].shape) != shape
  ]
  problems = [
    f'{len(names)} {what}: {_some(names)}'
    for what, names in (('missing', missing), ('unexpected', unexpected), ('misshapen', misshapen))
    if names
  ]
  if problems:
    raise UserError(f'these tensors are no {system} checkpoint: ' + '; '.join(problems))
