"""From the tensors of a public checkpoint to the variables of a network, and back: what all systems share."""

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util

from jaxface.errors import UserError, some

Path = tuple[str, ...]

# Public name -> path among the Flax variables.
Paths = Mapping[str, Path]

# (public name, variable) -> the tensor of that name as a view of the variable: what is written there arrives here. A
# vector may become a view of more axes; its tensor is the vector that these make.
Layout = Callable[[str, np.ndarray], np.ndarray]


class Conversion(NamedTuple):
  """One of several systems that a file converts."""

  from_reference: Callable[[Mapping[str, np.ndarray]], tuple[Any, dict[str, Any]]]
  to_reference: Callable[[Mapping[str, Any]], dict[str, np.ndarray]]


def pytorch(name: str, array: np.ndarray) -> np.ndarray:
  """PyTorch's layout: convolutions (out, in, height, width), linear layers (out, in); vectors agree.

  A transposed convolution is (in, out, height, width) there, (height, width, out, in) here: the same transposition.
  """
  del name
  return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def keras(name: str, array: np.ndarray) -> np.ndarray:
  """Keras's layout, which is Flax's."""
  del name
  return array


def layer_paths(layers: Iterable[tuple[str, Path]]) -> dict[str, Path]:
  """Paths of the weight and the bias of every layer, public name and path."""
  leaves = (('weight', 'kernel'), ('bias', 'bias'))
  return {f'{name}.{theirs}': ('params', *path, ours) for name, path in layers for theirs, ours in leaves}


def norm_paths(name: str, path: Path) -> dict[str, Path]:
  """Paths of the scale and the bias of the norm at `path`."""
  return {f'{name}.weight': ('params', *path, 'scale'), f'{name}.bias': ('params', *path, 'bias')}


def canonical(
  state: Mapping[str, np.ndarray], *, begins: tuple[str, ...] = (), ends: tuple[str, ...] = ()
) -> dict[str, np.ndarray]:
  """Without the prefix of a model trained on several devices, and without tensors whose names begin or end so."""
  prefix = 'module.' if state and all(name.startswith('module.') for name in state) else ''
  named = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
  return {name: tensor for name, tensor in named.items() if not name.startswith(begins) and not name.endswith(ends)}


def width(state: Mapping[str, np.ndarray], name: str) -> int:
  """Channels that the layer whose kernel has that name puts out; 1 where it is missing, which `check` reports."""
  kernel = state.get(name)
  return kernel.shape[0] if kernel is not None and kernel.ndim > 1 else 1


def count(state: Mapping[str, np.ndarray], pattern: str) -> int:
  """How many tensors have such a name; at least 1."""
  return max(sum(bool(re.fullmatch(pattern, name)) for name in state), 1)


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
  refuse(system, missing=missing, unexpected=unexpected, misshapen=misshapen)


def refuse(system: str, **wrong: Sequence[str]) -> None:
  """Raises one `UserError` that lists the tensors of each kind, where there are any."""
  problems = [f'{len(names)} {what}: {some(names, shown=4)}' for what, names in wrong.items() if names]
  if problems:
    raise UserError(f'these tensors are no {system} checkpoint: ' + '; '.join(problems))


def shapes(
  module: nn.Module, *, side: int = 64, pictures: int = 1, inputs: tuple[Any, ...] | None = None
) -> dict[Path, tuple[int, ...]]:
  """Path -> shape of every variable of a module that takes `inputs`, or so many pictures [1, side, side, 3]."""
  if inputs is None:
    inputs = (jax.ShapeDtypeStruct((1, side, side, 3), np.float32),) * pictures
  leaves, structure = jax.tree.flatten(inputs)
  return dict(_traced(module, structure, tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)))


@functools.lru_cache(maxsize=32)
def _traced(
  module: nn.Module, structure: jax.tree_util.PyTreeDef, leaves: tuple[jax.ShapeDtypeStruct, ...]
) -> dict[Path, tuple[int, ...]]:
  # To trace a large network takes seconds, and a file may hold one twice: trained and averaged.
  variables = jax.eval_shape(module.init, jax.random.key(0), *structure.unflatten(leaves))
  return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(variables).items()}


def variables_from(
  system: str,
  state: Mapping[str, np.ndarray],
  module: nn.Module,
  paths: Paths,
  *,
  layout: Layout = pytorch,
  side: int = 64,
  pictures: int = 1,
  inputs: tuple[Any, ...] | None = None,
) -> dict[str, Any]:
  """Variables (numpy, float32) for `module` from a checkpoint's tensors.

  Args:
    system: for the message.
    state: the checkpoint, name -> array.
    module: takes so many pictures [1, side, side, 3].
    paths: of all its variables.
    layout: of the checkpoint's tensors.
    side: see `module`.
    pictures: see `module`.
    inputs: what the module takes, arrays or their shapes, where that is not pictures.

  Raises:
    UserError: tensors are missing, unexpected or misshapen, see `check`; or no numbers, or not finite ones in float32.
  """
  return filled(system, state, shapes(module, side=side, pictures=pictures, inputs=inputs), paths, layout)


def filled(
  system: str,
  state: Mapping[str, np.ndarray],
  found: Mapping[Path, tuple[int, ...]],
  paths: Paths,
  layout: Layout = pytorch,
) -> dict[str, Any]:
  """`variables_from` for a network whose `shapes` are `found` already: to trace a large one takes seconds."""
  assert found.keys() == set(paths.values()), found.keys() ^ set(paths.values())
  # Strides of nothing: a shape's way through the layout costs no memory.
  nothing = np.zeros((), np.int8)
  public = {name: _laid_out(layout, name, np.broadcast_to(nothing, found[path])) for name, path in paths.items()}
  check(system, state, {name: tensor.shape for name, tensor in public.items()})
  flat = {}
  for name, path in paths.items():
    flat[path] = np.empty(found[path], np.float32)
    view = layout(name, flat[path])
    assert np.may_share_memory(view, flat[path]), name
    if state[name].dtype.kind in 'cmMOSU':
      raise UserError(f'these tensors are no {system} checkpoint: {name} is of type {state[name].dtype}')
    with np.errstate(over='ignore', invalid='ignore'):
      view[...] = state[name].reshape(view.shape)
    if not np.isfinite(view).all():
      raise UserError(f'{system}: {name} has values that are no finite float32 numbers; did this network diverge?')
  return traverse_util.unflatten_dict(flat)


def _laid_out(layout: Layout, name: str, array: np.ndarray) -> np.ndarray:
  tensor = layout(name, array)
  return tensor.ravel() if array.ndim == 1 else tensor


def state_from(variables: Mapping[str, Any], paths: Paths, layout: Layout = pytorch) -> dict[str, np.ndarray]:
  """The inverse of `variables_from`: name -> contiguous array."""
  flat = traverse_util.flatten_dict(variables)
  return {name: np.asarray(_laid_out(layout, name, np.asarray(flat[path])), order='C') for name, path in paths.items()}
