"""A whole SCA-DM checkpoint: ErgastiAlex/SCA-DM's LatentDiffusion <-> UNet, style encoder and first stage.

The file may hold an averaged copy of the UNet, too, whose names have lost their dots.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxface.convert import scadm_unet, style_encoder, tensors, vqgan
from jaxface.errors import UserError
from jaxface.models.scadm import SCAUNet
from jaxface.models.style_encoder import StyleEncoder
from jaxface.models.vqgan import VQGAN

_CONVERTERS = {'unet': scadm_unet, 'style': style_encoder, 'first_stage': vqgan}
_PREFIXES = {'unet': 'model.diffusion_model.', 'style': 'cond_stage_model.', 'first_stage': 'first_stage_model.'}
_AVERAGED = 'model_ema.'
# In the averaged copy, beside the network: how it was averaged.
_COUNTERS = ('decay', 'num_updates')

# The noise schedule and what follows from it, and a factor of the latents.
_SCHEDULE = {
  'betas',
  'alphas_cumprod',
  'alphas_cumprod_prev',
  'sqrt_alphas_cumprod',
  'sqrt_one_minus_alphas_cumprod',
  'log_one_minus_alphas_cumprod',
  'sqrt_recip_alphas_cumprod',
  'sqrt_recipm1_alphas_cumprod',
  'posterior_variance',
  'posterior_log_variance_clipped',
  'posterior_mean_coef1',
  'posterior_mean_coef2',
  'lvlb_weights',
  'logvar',
}
_SCALE = 'scale_factor'


class SCADM(NamedTuple):
  """The networks of a checkpoint, and what it says of their use.

  Attributes:
    unet: the denoiser.
    style: the style encoder.
    first_stage: the autoencoder.
    betas: [T], of the noise schedule it was trained with; None where the file has none.
    scale: factor of the latents that the denoiser was trained on.
  """

  unet: SCAUNet
  style: StyleEncoder
  first_stage: VQGAN
  betas: np.ndarray | None
  scale: float


def canonical(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The tensors of the denoiser, its averaged copy and the style encoder that are read, under their public names."""
  state = tensors.canonical(state)
  unused = (f'{_PREFIXES["unet"]}label_emb.', f'{_AVERAGED}diffusion_modellabel_emb')
  named = (_PREFIXES['unet'], _PREFIXES['style'], _AVERAGED)
  counters = {_AVERAGED + name for name in _COUNTERS}
  return {
    name: tensor
    for name, tensor in state.items()
    if name.startswith(named) and not name.startswith(unused) and name not in counters
  }


def first_stage_of(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The autoencoder's tensors under the names of a file of its own: of a latent diffusion's file, or such a file's."""
  state = tensors.canonical(state)
  return _under(_PREFIXES['first_stage'], state) or state


def _under(prefix: str, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _averaged_name(name: str) -> str:
  """How the averaged copy, whose names are attributes, calls the denoiser's tensor `name`."""
  return f'diffusion_model{name.replace(".", "")}'


def from_reference(state: Mapping[str, np.ndarray], *, head_channels: int = 32) -> tuple[SCADM, dict[str, Any]]:
  """Modules and variables of the public code's LatentDiffusion, `{'model.diffusion_model.out.2.weight': array, ...}`.

  Args:
    state: the checkpoint's tensors.
    head_channels: the configuration's `num_head_channels`, which shapes cannot tell.

  Returns:
    The modules, and {'params': {'unet', 'style', 'first_stage'}}, with 'ema': {'unet'} where the file has it.

  Raises:
    UserError: tensors are missing, unexpected or misshapen, or the networks do not fit each other.
  """
  state = tensors.canonical(state)
  parts = {name: _under(prefix, state) for name, prefix in _PREFIXES.items()}
  averaged = _under(_AVERAGED, state)
  _check_parts(state, parts)
  options = {'unet': {'head_channels': head_channels}}
  modules, params = {}, {}
  for name, part in parts.items():
    modules[name], variables = _CONVERTERS[name].from_reference(part, **options.get(name, {}))
    params[name] = variables['params']
  _check_fit(**modules)
  variables = {'params': params}
  if averaged:
    variables['ema'] = {'unet': _from_averaged(averaged, parts['unet'], head_channels)}
  scale = float(state[_SCALE]) if _SCALE in state else 1.0
  return SCADM(**modules, betas=state.get('betas'), scale=scale), variables


def _check_parts(state: Mapping[str, np.ndarray], parts: Mapping[str, Mapping[str, np.ndarray]]) -> None:
  missing = [f'{_PREFIXES[name]}*' for name, part in parts.items() if not part]
  known = (*_PREFIXES.values(), _AVERAGED)
  others = [name for name in state if not name.startswith(known) and name not in (*_SCHEDULE, _SCALE)]
  tensors.refuse('scadm', missing=missing, unexpected=others)


def _check_fit(unet: SCAUNet, style: StyleEncoder, first_stage: VQGAN) -> None:
  for what, ours, theirs, whose in (
    ('classes', unet.num_classes, style.num_classes, 'style encoder'),
    ('numbers in a style', unet.context_dim, style.num_tokens_channels, 'style encoder'),
    ('channels in a latent', unet.out_channels, first_stage.latent_channels, 'first stage'),
  ):
    if ours != theirs:
      raise UserError(f'these tensors are no scadm checkpoint: {ours} {what} in the UNet, {theirs} in the {whose}')


def _from_averaged(
  averaged: Mapping[str, np.ndarray], unet: Mapping[str, np.ndarray], head_channels: int
) -> dict[str, Any]:
  """The averaged UNet's parameters."""
  dotted = {_averaged_name(name): name for name in unet}
  tensors_of_unet = {
    dotted.get(name, _AVERAGED + name): tensor for name, tensor in averaged.items() if name not in _COUNTERS
  }
  return scadm_unet.from_reference(tensors_of_unet, head_channels=head_channels)[1]['params']


def to_reference(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """`{'model.diffusion_model.out.2.weight': array, ...}` of those parts that `variables` has.

  The schedule and the averaged copy's counters, which the public code makes anew, are not among them.
  """
  state = {}
  for part, params in variables['params'].items():
    own = _CONVERTERS[part].to_reference({'params': params})
    state |= {_PREFIXES[part] + name: tensor for name, tensor in own.items()}
  if 'ema' in variables:
    own = scadm_unet.to_reference({'params': variables['ema']['unet']})
    state |= {_AVERAGED + _averaged_name(name): tensor for name, tensor in own.items()}
  return state
