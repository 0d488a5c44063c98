"""LPIPS: torchvision's backbone and the `lpips` package's linear weights <-> `jaxface.metrics.lpips`.

Both come in one state: `features.0.weight`, ... as torchvision's files have them, and `lin0.model.1.weight`, ..., each
(1, channels, 1, 1), as the package's weights/v0.1/*.pth have them. Their names do not clash.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxface.convert import tensors
from jaxface.convert.torchvision import from_torchvision, to_torchvision
from jaxface.errors import UserError
from jaxface.metrics.lpips import CHANNELS, NETS, Lpips, make_backbone

_SYSTEM = 'LPIPS'


def _linear(tap: int) -> str:
  return f'lin{tap}.model.1.weight'


def _net_of(state: Mapping[str, np.ndarray]) -> str:
  channels = tuple(np.shape(state[_linear(tap)])[1] for tap in range(len(state)) if _linear(tap) in state)
  fitting = [net for net in NETS if CHANNELS[net] == channels]
  if not fitting:
    raise UserError(
      f'these tensors are no {_SYSTEM} checkpoint: their linear layers lin0, lin1, ... have channels {channels}; '
      f'legal are {", ".join(f"{CHANNELS[net]} ({net})" for net in NETS)}'
    )
  return fitting[0]


def from_reference(state: Mapping[str, np.ndarray], *, net: str | None = None) -> tuple[Lpips, dict[str, Any]]:
  """Module and variables (numpy, float32); `net` is read from the linear layers unless it is given.

  UserError where tensors are missing, unexpected or misshapen. The classifier's are ignored.
  """
  module = Lpips(net or _net_of(state))
  linear = {_linear(tap): (1, channels, 1, 1) for tap, channels in enumerate(CHANNELS[module.net])}
  tensors.check(_SYSTEM, {name: a for name, a in state.items() if name.startswith('lin')}, linear)
  backbone = {name: a for name, a in state.items() if not name.startswith('lin')}
  params = {f'tap{tap}': np.asarray(state[name], np.float32).ravel() for tap, name in enumerate(linear)}
  params['backbone'] = from_torchvision(make_backbone(module.net), backbone)['params']
  return module, {'params': params}


def to_reference(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """The inverse."""
  params = dict(variables['params'])
  backbone = params.pop('backbone')
  state = {_linear(tap): np.asarray(params[f'tap{tap}'])[None, :, None, None] for tap in range(len(params))}
  return to_torchvision(make_backbone(_net_of(state)), {'params': backbone}) | state
