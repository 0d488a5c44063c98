"""FID's Inception: pytorch-fid's pt_inception-2015-12-05-6726825d.pth <-> `jaxface.models.inception`."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jaxface.convert import folded_norm, tensors
from jaxface.models.inception import InceptionFeatures

_EPSILON = 1e-3


def _layers(names: Iterable[str]) -> list[folded_norm.Layer]:
  """Of all convolutions; 'Mixed_5b_branch1x1' is 'Mixed_5b.branch1x1' there."""
  public = {name: name.replace('_branch', '.branch') for name in names}
  return [(f'{theirs}.conv', f'{theirs}.bn', ours) for ours, theirs in public.items()]


def from_reference(state: Mapping[str, np.ndarray]) -> tuple[InceptionFeatures, dict[str, Any]]:
  """Module and variables (numpy, float32), BatchNorm taken into the convolutions.

  UserError where tensors are missing, unexpected or misshapen. The classifier (fc) and counters of batches are ignored.
  """
  module = InceptionFeatures()
  shapes = tensors.shapes(module, side=75)
  layers = _layers(name for _, name, kind in shapes if kind == 'kernel')
  state = tensors.canonical(state, begins=('fc.',), ends=('.num_batches_tracked',))
  return module, folded_norm.variables_from('inception', state, shapes, layers, _EPSILON)


def to_reference(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """A state that computes the same, with BatchNorms that only add the biases; without the classifier."""
  return folded_norm.state_from(variables, _layers(variables['params']), _EPSILON)
