"""Public checkpoints to Flax modules and variables, and back.

A checkpoint is `{name: numpy array}` in the public code's own names and layouts; reading it from a file is the business
of a reader: `keras_h5.read`, `torch_file.read` or `numpy_pickle.read`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import linen as nn

from jaxface.convert import (
  beautygan,
  bisenet,
  inception,
  ipmnet,
  lpips,
  resnet18,
  resnet50_face,
  scadm,
  scadm_unet,
  sdm_unet,
  style_encoder,
  vae,
  vgg19,
  vqgan,
)
from jaxface.errors import UserError

SYSTEMS = {
  'vae': vae,
  'bisenet': bisenet,
  'resnet18': resnet18,
  'lpips': lpips,
  'inception': inception,
  'beautygan_generator': beautygan.generator,
  'beautygan_discriminator': beautygan.discriminator,
  'ipmnet_generator': ipmnet.generator,
  'ipmnet_discriminator': ipmnet.discriminator,
  'vgg19': vgg19,
  'resnet50_face': resnet50_face,
  'vqgan': vqgan,
  'vqgan_discriminator': vqgan.discriminator,
  'scadm': scadm,
  'scadm_unet': scadm_unet,
  'scadm_style_encoder': style_encoder,
  'sdm_unet': sdm_unet,
}


def _system(name: str):
  if name not in SYSTEMS:
    raise UserError(f'unknown system {name!r}; checkpoints can be converted for {", ".join(SYSTEMS)}')
  return SYSTEMS[name]


def from_reference(
  system: str, state: Mapping[str, np.ndarray], **options: Any
) -> tuple[nn.Module | scadm.SCADM, dict]:
  """Module and variables (numpy, float32) that compute what the public checkpoint computes.

  'scadm', a checkpoint of several networks, gives a `scadm.SCADM` of modules.

  Args:
    system: a key of `SYSTEMS`.
    state: the checkpoint's tensors; widths and depths are inferred from their shapes.
    **options: what shapes cannot tell, see the system's own `from_reference`.

  Raises:
    UserError: tensors are missing, unexpected or misshapen; the message lists them.
  """
  return _system(system).from_reference(state, **options)


def to_reference(system: str, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """The inverse: `variables` under the public checkpoint's names and in its layouts."""
  return _system(system).to_reference(variables)
