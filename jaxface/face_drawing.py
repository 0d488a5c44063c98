"""A trained run that draws faces after label maps: opened, shown photos and label maps, and set to draw."""

# B batch | S picture size | K classes | D numbers of a style

import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from jaxface import figures, photos
from jaxface.augment import to_signed
from jaxface.device_map import map_batches
from jaxface.errors import UserError
from jaxface.input_pipeline import Decode
from jaxface.models.scadm import Conditioning
from jaxface.models.sdm import condition_map
from jaxface.runs import Run, load_run
from jaxface.state import TrainState
from jaxface.styles import Style, classes_in
from jaxface.synthesis_figures import Drawing, Face
from jaxface.tasks import diffusion
from jaxface.tasks.diffusion import DiffusionTask, Sampling
from jaxface.tasks.scadm import ScaDmTask
from jaxface.threads import chunks

# Pictures that are computed at once.
_BATCH = 8


def open_run(workdir: Path, checkpoint: str, *, styled: bool) -> Run:
  """A run that draws after label maps; UserError where it is none, or knows no styles and these are wanted."""
  run = load_run(workdir, checkpoint)
  if not isinstance(run.engine.task, DiffusionTask):
    raise UserError(
      f"{workdir} is a run of task {run.config.task!r}; faces are drawn after label maps by one of 'scadm' or 'sdm': "
      'train it by `jaxface train --config experiments/scadm.py:published`'
    )
  if styled and not isinstance(run.engine.task, ScaDmTask):
    raise UserError(
      f'{workdir} is a run of task {run.config.task!r}, which knows no styles; leave out --style, --part, --mix and '
      "--figure, or give a run of 'scadm'"
    )
  return run


def make_sampling(run: Run, sampler: str | None, steps: int, guidance: float | None) -> Sampling:
  """The run's own sampling with these changed; None is the run's own, 0 steps are all timesteps."""
  task, config = run.engine.task, run.config.sampling.copy_and_resolve_references()
  if sampler not in (None, config.name):
    config.name, config.eta = sampler, 0.0
  config.steps = steps
  if guidance is not None:
    config.guidance = float(guidance)
  return diffusion.make_sampling(config, task.schedule, clip=task.sampling.clip, variance=task.sampling.variance)


def see(run: Run, layouts: Sequence[Path], given: photos.Photos) -> dict[Path, Face]:
  """Layouts and photos at the network's size, with their styles where it knows such.

  Layouts that are not among the photos are label maps. Of what is not square the middle is taken, with a warning.
  """
  decode = functools.partial(Decode, image_size=run.config.model.image_size, resize=run.config.data.resize)
  maps = [path for path in layouts if path not in given.paths]
  faces = {}
  for path, label in zip(maps, photos.read_label_maps(maps, given.order), strict=True):
    _warn_unless_square(path, label)
    seen = decode(('label',)).map({'label': _middle(label)[..., None]})
    faces[path] = Face(path, seen['label'].astype(np.int32))
  for path, image, label in given:
    _warn_unless_square(path, image)
    seen = decode(('image', 'label')).map({'image': _middle(image), 'label': _middle(label)[..., None]})
    faces[path] = Face(path, seen['label'].astype(np.int32), seen['image'])
  if isinstance(run.engine.task, ScaDmTask):
    wanted = [(path, 'none') for path in layouts] + [(path, 'own') for path in given.paths]
    pairs = [(faces[path].image if kind == 'own' else None, faces[path].label) for path, kind in wanted]
    for (path, kind), style in zip(wanted, _styles(run, pairs), strict=True):
      faces[path] = faces[path]._replace(**{kind: style})
  return faces


def _warn_unless_square(path: Path, plane: np.ndarray) -> None:
  height, width = plane.shape[:2]
  if height != width:
    side = min(height, width)
    logging.getLogger(__name__).warning(
      '%s: %dx%d pixels are no square, of which its middle is taken, %dx%d; cut it yourself for another part',
      path, width, height, side, side,
    )  # fmt: skip


def _middle(plane: np.ndarray) -> np.ndarray:
  height, width = plane.shape[:2]
  side = min(height, width)
  top, left = (height - side) // 2, (width - side) // 2
  return plane[top : top + side, left : left + side]


def _mapped(function: Callable, run: Run, items: Iterable[tuple[np.ndarray, ...]]) -> Iterator[Any]:
  batches = map_batches(function, run.state, chunks(items, _BATCH), _BATCH)
  return itertools.chain.from_iterable(batches)


def _styles(run: Run, pairs: Sequence[tuple[np.ndarray | None, np.ndarray]]) -> Iterator[Style]:
  """The style of pictures, uint8 [S, S, 3] or None for an empty one, under label maps."""
  nothing = np.zeros((run.config.model.image_size,) * 2 + (3,), np.uint8)
  items = ((nothing if image is None else image, np.float32(image is not None), label) for image, label in pairs)
  tokens = _mapped(functools.partial(_tokens, run.engine.task), run, items)
  return (Style(each, classes_in(label)) for each, (_, label) in zip(tokens, pairs, strict=True))


def _tokens(task: ScaDmTask, state: TrainState, image: jax.Array, given: jax.Array, label: jax.Array) -> jax.Array:
  # An empty picture is grey: zeros in [-1, 1].
  return task.style(state.params, to_signed(image) * given[:, None, None, None], label)


def through_first_stage(run: Run, faces: Iterable[Face]) -> list[np.ndarray]:
  """What the autoencoder alone makes of photos, uint8 [S, S, 3] each: the best that drawing can reach."""
  items = ((face.image,) for face in faces)
  return [figures.to_uint8(each) for each in _mapped(functools.partial(_coded, run.engine.task), run, items)]


def _coded(task: ScaDmTask, state: TrainState, image: jax.Array) -> jax.Array:
  (coded,) = task.coded(state, to_signed(image)).values()
  return coded


def draw(
  run: Run, sampling: Sampling, drawings: Sequence[Drawing], layouts: Sequence[Face], seed: int
) -> Iterator[np.ndarray]:
  """Each drawing, uint8 [S, S, 3]; its noise depends on the seed, its layout's number and its draw's alone."""

  def items() -> Iterator[tuple[np.ndarray, ...]]:
    for layout, draw, style in drawings:
      tokens = () if style is None else (style.tokens,)
      yield layouts[layout].label, np.array([seed, layout, draw], np.uint32), *tokens

  drawn = _mapped(functools.partial(_drawn, run.engine.task, sampling), run, items())
  for picture in tqdm(drawn, total=len(drawings), unit=' pictures', desc='synthesize', leave=False, disable=None):
    yield figures.to_uint8(picture)


def _drawn(
  task: DiffusionTask,
  sampling: Sampling,
  state: TrainState,
  label: jax.Array,
  place: jax.Array,
  tokens: jax.Array | None = None,
) -> jax.Array:
  """After label maps [B, S, S] in styles [B, K, D]; seed, layout and draw are `place` [B, 3]. -> [0, 1]."""

  def key(place: jax.Array) -> jax.Array:
    seed, layout, draw = place
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), layout), draw)

  given = condition_map(label) if tokens is None else Conditioning(tokens, label)
  return task.draw(state, given, jax.vmap(key)(place), sampling=sampling)
