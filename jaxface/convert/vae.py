"""Face-mask VAE: tldrafael/FaceReconstructionWithVAEAndFaceMasks (Keras) <-> `jaxface.models.vae`.

Keras names layers by a counter per kind, which runs on from model to model within a process: a file may begin at
`conv2d_25`. Within a model the order is that of creation: encoder, image decoder, mask decoder.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxface.convert import tensors
from jaxface.errors import UserError
from jaxface.models.vae import FaceMaskVAE, Widths, stage_sizes

# Keras's weight -> collection and leaf in Flax. Layouts agree: HWIO, transposed (h, w, out, in), dense (in, out).
_WEIGHTS = {
  'conv2d': {'kernel': ('params', 'kernel'), 'bias': ('params', 'bias')},
  'batch_normalization': {
    'gamma': ('params', 'scale'),
    'beta': ('params', 'bias'),
    'moving_mean': ('batch_stats', 'mean'),
    'moving_variance': ('batch_stats', 'var'),
  },
}
_WEIGHTS |= dict.fromkeys(('conv2d_transpose', 'dense', 'z_mean', 'z_logvar'), _WEIGHTS['conv2d'])
_WEIGHTS |= dict.fromkeys(('out_image', 'out_image_pre', 'out_mask'), _WEIGHTS['conv2d'])

_COUNTED = re.compile(r'(conv2d|conv2d_transpose|batch_normalization|dense)(?:_(\d+))?')


class _Layout(NamedTuple):
  """What decides the layers there are: convolutions of each encoder stage, and whether masks are decoded."""

  blocks: tuple[int, ...]
  has_mask: bool


def _layers(layout: _Layout) -> Iterator[tuple[str, tuple[str, ...]]]:
  """Kind of every layer and its path in the Flax module, in the order in which Keras counts."""
  for stage, blocks in enumerate(layout.blocks):
    for block in range(blocks):
      path = ('encoder', f'stage_{stage}_block_{block}')
      yield 'conv2d', (*path, 'conv')
      yield 'batch_normalization', (*path, 'norm')
  for kind, name in (('dense', 'hidden'), ('z_mean', 'mean'), ('z_logvar', 'log_sigma')):
    yield kind, ('encoder', name)
  decoders = {'image_decoder': 'out_image_pre', 'mask_decoder': 'out_mask'}
  for decoder, out in decoders.items() if layout.has_mask else [('image_decoder', 'out_image')]:
    for stage in range(len(layout.blocks)):
      for kind, name in (('conv2d_transpose', 'up'), ('conv2d', 'refine')):
        yield kind, (decoder, f'stage_{stage}_{name}', 'conv')
        yield 'batch_normalization', (decoder, f'stage_{stage}_{name}', 'norm')
    yield out, (decoder, 'out')


def _flax_paths(layout: _Layout) -> tensors.Paths:
  """'<Keras layer>.<weight>' -> path of the variable, the counters beginning at 0."""
  seen: Counter[str] = Counter()
  paths = {}
  for kind, path in _layers(layout):
    layer = f'{kind}_{seen[kind]}' if seen[kind] else kind
    seen[kind] += 1
    for weight, (collection, leaf) in _WEIGHTS[kind].items():
      paths[f'{layer}.{weight}'] = (collection, *path, leaf)
  return paths


def counted_from_zero(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The state with each kind's smallest counter taken off its names."""
  parsed = {name: _COUNTED.fullmatch(name.partition('.')[0]) for name in state}
  first: dict[str, int] = {}
  for match in filter(None, parsed.values()):
    kind, number = match[1], int(match[2] or 0)
    first[kind] = min(number, first.get(kind, number))
  renamed = {}
  for name, match in parsed.items():
    if match:
      number = int(match[2] or 0) - first[match[1]]
      name_from_zero = f'{match[1]}_{number}' if number else match[1]
      renamed[f'{name_from_zero}.{name.partition(".")[2]}'] = state[name]
    else:
      renamed[name] = state[name]
  return renamed


def _layout(state: Mapping[str, np.ndarray]) -> _Layout:
  """Reads the depth off the counters: so many transposed convolutions, so many convolutions."""
  counts: Counter[str] = Counter()
  for name in state:
    if match := _COUNTED.fullmatch(name.partition('.')[0]):
      counts[match[1]] = max(counts[match[1]], int(match[2] or 0) + 1)
  has_mask = any(name.startswith('out_mask.') for name in state)
  decoders = 2 if has_mask else 1
  stages, uneven = divmod(counts['conv2d_transpose'], decoders)
  # Every decoder stage has one convolution beside its transposed one; the public encoder doubles its shallow stages.
  doubled = counts['conv2d'] - (decoders + 1) * stages
  if stages == 0 or uneven or not 0 <= doubled <= stages:
    raise UserError(
      f'these tensors are no vae checkpoint: {counts["conv2d"]} conv2d and {counts["conv2d_transpose"]} '
      f'conv2d_transpose layers ({"with" if has_mask else "without"} out_mask) do not make an encoder and decoders; '
      f'the published network has {"25 and 14" if has_mask else "18 and 7"}'
    )
  return _Layout(tuple(2 if stage < doubled else 1 for stage in range(stages)), has_mask)


def _grouped(flat: Sequence[int], sizes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
  remaining = iter(flat)
  return tuple(tuple(next(remaining) for _ in range(size)) for size in sizes)


def from_reference(state: Mapping[str, np.ndarray], *, image_size: int | None = None) -> tuple[FaceMaskVAE, dict]:
  """Module and variables of the public network: `{'conv2d.kernel': array, ...}`, as `keras_h5.read` returns.

  Args:
    state: weights of the public training or prediction model, with or without mask decoder.
    image_size: the picture size, which the shapes tell only to within a factor of two; by default 144 or, where the
      depth does not fit that, the power of two that does.
  """
  state = counted_from_zero(state)
  layout = _layout(state)
  paths = _flax_paths(layout)
  stages = len(layout.blocks)
  # Biases alone tell the widths; whatever does not fit them is then reported with the tensors that are not there.
  biases = {path[1:-1]: state[name].shape[0] for name, path in paths.items() if path[-1] == 'bias' and name in state}
  convs = [
    biases.get(('encoder', f'stage_{stage}_block_{block}', 'conv'), 1)
    for stage, blocks in enumerate(layout.blocks)
    for block in range(blocks)
  ]

  def decoder_widths(decoder):
    return tuple(biases.get((decoder, f'stage_{stage}_up', 'conv'), 1) for stage in range(stages))

  widths = Widths(
    _grouped(convs, layout.blocks),
    decoder_widths('image_decoder'),
    decoder_widths('mask_decoder') if layout.has_mask else (),
  )
  if image_size is None:
    image_size = 144 if stages == len(stage_sizes(144)) - 1 else 2**stages
  module = FaceMaskVAE(image_size, *widths, latent_dim=biases.get(('encoder', 'mean'), 1), sampling='reference')
  return module, tensors.variables_from('vae', state, module, paths, layout=tensors.keras, side=image_size)


def to_reference(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """`{'conv2d.kernel': array, ...}` for the public model, its automatic names counted from 0."""
  encoder = variables['params']['encoder']
  stages = Counter(name.partition('_block_')[0] for name in encoder if '_block_' in name)
  layout = _Layout(
    tuple(stages[f'stage_{stage}'] for stage in range(len(stages))), 'mask_decoder' in variables['params']
  )
  return tensors.state_from(variables, _flax_paths(layout), tensors.keras)
