"""Face parser: zllrunning/face-parsing.PyTorch <-> `jaxface.models.bisenet`."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxface.convert import resnet18, tensors
from jaxface.models.bisenet import BiSeNet


def _layers() -> Iterator[resnet18.Layer]:
  yield from resnet18.layers('cp.resnet.', ('context', 'resnet'))
  for theirs, ours in (('arm16', 'refine16'), ('arm32', 'refine32')):
    yield f'cp.{theirs}.conv.conv', f'cp.{theirs}.conv.bn', ('context', ours, 'conv')
    yield f'cp.{theirs}.conv_atten', f'cp.{theirs}.bn_atten', ('context', ours, 'gate')
  for theirs, ours in (('conv_head32', 'up16'), ('conv_head16', 'up8'), ('conv_avg', 'whole')):
    yield f'cp.{theirs}.conv', f'cp.{theirs}.bn', ('context', ours)
  yield 'ffm.convblk.conv', 'ffm.convblk.bn', ('fusion', 'mix')
  yield 'ffm.conv1', None, ('fusion', 'squeeze')
  yield 'ffm.conv2', None, ('fusion', 'excite')
  # The auxiliary heads are named there by the scale below the one they read.
  for theirs, ours in (('conv_out', 'head'), ('conv_out16', 'aux8'), ('conv_out32', 'aux16')):
    yield f'{theirs}.conv.conv', f'{theirs}.conv.bn', (ours, 'conv')
    yield f'{theirs}.conv_out', None, (ours, 'classes')


def from_reference(state: Mapping[str, np.ndarray]) -> tuple[BiSeNet, dict]:
  """Module and variables of the public parser, `{'cp.resnet.conv1.weight': array, ...}`; its classes in its own order.

  That is `labels.BISENET_CLASSES` for the published weights.
  """
  state = resnet18.canonical(state)

  def width(convolution: str) -> int:
    return tensors.width(state, f'{convolution}.weight')

  module = BiSeNet(
    num_classes=width('conv_out.conv_out'),
    resnet_widths=tuple(width(f'cp.resnet.layer{layer}.0.conv1') for layer in range(1, 5)),
    context_width=width('cp.conv_avg.conv'),
    fusion_width=width('ffm.convblk.conv'),
    squeeze_width=width('ffm.conv1'),
    head_width=width('conv_out.conv.conv'),
    aux_width=width('conv_out16.conv.conv'),
  )
  return module, resnet18.variables_from('bisenet', state, module, _layers())


def to_reference(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """`{'cp.resnet.conv1.weight': array, ...}`."""
  return resnet18.state_from(variables, _layers())
