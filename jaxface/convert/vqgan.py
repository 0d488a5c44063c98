"""VQ-f4 and its like: CompVis/latent-diffusion, CompVis/taming-transformers <-> `jaxface.models.vqgan`, `.patchgan`.

A checkpoint of a training holds the autoencoder and, under `loss.`, the discriminator and a copy of LPIPS; one of
latent diffusion holds the autoencoder under `first_stage_model.`.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxface.convert import tensors
from jaxface.models.patchgan import PatchGAN
from jaxface.models.unet_layers import GROUPS
from jaxface.models.vqgan import VQGAN

Names = Iterator[tuple[str, tensors.Path]]

_PREFIX = 'first_stage_model.'
_DISCRIMINATOR = 'loss.discriminator.'
_CODEBOOK = 'quantize.embedding.weight'
_COUNTER = 'num_batches_tracked'


def _conv(public: str, *path: str) -> Names:
  yield from tensors.layer_paths([(public, path)]).items()


def _block(public: str, *path: str, shortcut: bool = False) -> Names:
  for i in range(2):
    yield from tensors.norm_paths(f'{public}.norm{i + 1}', (*path, f'norm{i}')).items()
    yield from _conv(f'{public}.conv{i + 1}', *path, f'conv{i}')
  if shortcut:
    yield from _conv(f'{public}.nin_shortcut', *path, 'shortcut')


def _ends(part: str) -> Names:
  """First and last layers and the middle of the encoder or the decoder."""
  yield from _conv(f'{part}.conv_in', part, 'conv_in')
  for i in range(2):
    yield from _block(f'{part}.mid.block_{i + 1}', part, f'middle_block{i}')
  attention = f'{part}.mid.attn_1', part, 'middle_attention'
  yield from tensors.norm_paths(f'{attention[0]}.norm', (*attention[1:], 'norm')).items()
  for theirs, ours in (('q', 'query'), ('k', 'key'), ('v', 'value'), ('proj_out', 'out')):
    yield from _conv(f'{attention[0]}.{theirs}', *attention[1:], ours)
  yield from tensors.norm_paths(f'{part}.norm_out', (part, 'norm_out')).items()


def _names(multipliers: tuple[int, ...], num_blocks: int) -> Names:
  last = len(multipliers) - 1
  for part in ('encoder', 'decoder'):
    yield from _ends(part)
  for level, multiplier in enumerate(multipliers):
    # Width before the level: encoders come from above, decoders from below; both ends begin with the level's own.
    above = multipliers[level - 1] if level else 1
    below = multipliers[min(level + 1, last)]
    for part, side, blocks, before in (
      ('encoder', 'down', num_blocks, above),
      ('decoder', 'up', num_blocks + 1, below),
    ):
      for i in range(blocks):
        shortcut = i == 0 and before != multiplier
        yield from _block(f'{part}.{side}.{level}.block.{i}', part, f'level{level}_block{i}', shortcut=shortcut)
    if level < last:
      yield from _conv(f'encoder.down.{level}.downsample.conv', 'encoder', f'down{level}', 'conv')
    if level:
      yield from _conv(f'decoder.up.{level}.upsample.conv', 'decoder', f'up{level}', 'conv')
  yield from _conv('encoder.conv_out', 'encoder', 'conv_out')
  yield from _conv('decoder.conv_out', 'to_image')
  yield from _conv('quant_conv', 'to_latent')
  yield from _conv('post_quant_conv', 'from_latent')
  yield _CODEBOOK, ('params', 'quantiser', 'codebook')


def _layout(name: str, array: np.ndarray) -> np.ndarray:
  """PyTorch's; a codebook has an entry a row there as here."""
  return array if name == _CODEBOOK else tensors.pytorch(name, array)


def canonical(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The autoencoder's own tensors, without a prefix that all have."""
  if state and all(name.startswith(_PREFIX) for name in state):
    state = {name.removeprefix(_PREFIX): tensor for name, tensor in state.items()}
  return tensors.canonical(state, begins=('loss.', 'model_ema.'))


def _module(state: Mapping[str, np.ndarray]) -> VQGAN:
  width = lambda layer: tensors.width(state, f'{layer}.weight')
  base = width('encoder.conv_in')
  # What no network could have is left for `check` to report.
  base = base if base % GROUPS == 0 else GROUPS
  levels = tensors.count(state, r'encoder\.down\.\d+\.block\.0\.conv1\.weight')
  return VQGAN(
    width=base,
    multipliers=tuple(max(width(f'encoder.down.{level}.block.0.conv1') // base, 1) for level in range(levels)),
    num_blocks=tensors.count(state, r'encoder\.down\.0\.block\.\d+\.conv1\.weight'),
    latent_channels=width('encoder.conv_out'),
    codebook_size=width(_CODEBOOK.removesuffix('.weight')),
  )


def from_reference(state: Mapping[str, np.ndarray]) -> tuple[VQGAN, dict[str, Any]]:
  """Module and variables of the public code's VQModel, `{'encoder.conv_in.weight': array, ...}`."""
  state = canonical(state)
  module = _module(state)
  paths = dict(_names(module.multipliers, module.num_blocks))
  return module, tensors.variables_from('vqgan', state, module, paths, layout=_layout, side=module.factor)


def to_reference(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """`{'encoder.conv_in.weight': array, ...}`."""
  encoder = variables['params']['encoder']
  levels = sum(bool(re.fullmatch(r'level\d+_block0', name)) for name in encoder)
  base = encoder['conv_in']['kernel'].shape[-1]
  multipliers = tuple(encoder[f'level{level}_block0']['conv0']['kernel'].shape[-1] // base for level in range(levels))
  num_blocks = sum(name.startswith('level0_') for name in encoder)
  return tensors.state_from(variables, dict(_names(multipliers, num_blocks)), _layout)


def _discriminator_paths(num_layers: int) -> tensors.Paths:
  paths = tensors.layer_paths([('main.0', ('conv0',)), (f'main.{3 * num_layers + 2}', ('score',))])
  for i in range(1, num_layers + 1):
    norm = f'main.{3 * i}'
    paths[f'main.{3 * i - 1}.weight'] = ('params', f'conv{i}', 'kernel')
    paths |= tensors.norm_paths(norm, (f'norm{i}',))
    paths |= {f'{norm}.running_{leaf}': ('batch_stats', f'norm{i}', leaf) for leaf in ('mean', 'var')}
  return paths


def _discriminator_from_reference(state: Mapping[str, np.ndarray]) -> tuple[PatchGAN, dict[str, Any]]:
  """Module and variables of the public code's NLayerDiscriminator, `{'main.0.weight': array, ...}`.

  Of a whole training's tensors it takes those under `loss.discriminator.`.
  """
  own = {name.removeprefix(_DISCRIMINATOR): t for name, t in state.items() if name.startswith(_DISCRIMINATOR)}
  state = tensors.canonical(own or state, ends=(_COUNTER,))
  module = PatchGAN(tensors.width(state, 'main.0.weight'), tensors.count(state, r'main\.\d+\.running_mean'))
  paths = _discriminator_paths(module.num_layers)
  return module, tensors.variables_from('vqgan_discriminator', state, module, paths, side=module.least_side)


def _discriminator_to_reference(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """`{'main.0.weight': array, ...}`, with the counters of BatchNorm, 0."""
  num_layers = sum(name.startswith('norm') for name in variables['params'])
  state = tensors.state_from(variables, _discriminator_paths(num_layers))
  return state | {f'main.{3 * i}.{_COUNTER}': np.zeros((), np.int64) for i in range(1, num_layers + 1)}


discriminator = tensors.Conversion(_discriminator_from_reference, _discriminator_to_reference)
