"""What the makeup systems share: the pictures a step sees, transfer at a level, what is measured, what is drawn.

A *target* is a face without makeup, a *reference* another person's face with it; the result is the target wearing the
reference's makeup. Rendered faces have a *true* result as well, the target painted with that makeup.
"""

# B batch | S picture size | H,W sides of what the network sees

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxface.augment import Framing, to_float, to_signed, to_unit
from jaxface.errors import UserError
from jaxface.histogram_matching import regions
from jaxface.metrics import pixel
from jaxface.ssim import ssim
from jaxface.state import PyTree, TrainState
from jaxface.tasks.task import Batch, Compared, Metrics, row_keys
from jaxface.texture import keep_mask

# How far from the eye its makeup reaches, as a share of the picture's side (BeautyGAN: 10 pixels of 256).
EYE_MARGIN = 10 / 256
_SSIM_WINDOW = 11
# Numbers of a style that `colours_loss` gives a meaning.
COLOURS = 9


class Faces(NamedTuple):
  """Pictures as the networks see them: `image` [B, H, W, 3] in [-1, 1], `label` [B, H, W] in the project's order.

  `texture` [B, H, W, 1] in [0, 1] only where the system uses one; `truth` [B, H, W, 3] in [-1, 1], targets in their
  references' makeup, only where that is known.
  """

  image: jax.Array
  label: jax.Array
  texture: jax.Array | None = None
  truth: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class MakeupTask(abc.ABC):
  """Evaluation and pictures of a makeup system; training is the subclass's.

  Attributes:
    framing: which square of a picture the networks see.
    image_size: side S of the pictures that the square is cut from.
    paired: factor of `region_loss` to true results in training, which then sees targets with their own references; 0
      leaves it out.
    frozen: variables of the networks that the losses compare by; see `Task`.
  """

  framing: Framing
  image_size: int
  paired: float = dataclasses.field(default=0.0, kw_only=True)
  frozen: PyTree = dataclasses.field(default=None, compare=False, repr=False, kw_only=True)

  columns = ('target', 'reference', 'transfer', 'pasted', 'half', 'reconstruction', 'true')
  given = ('target', 'reference')
  comparison = ('pasted',)

  @property
  def batch_fields(self) -> tuple[str, ...]:
    """See `Task`."""
    return ('image', 'label', 'reference_image', 'reference_label', *(('makeup_image',) if self.paired else ()))

  @property
  def optional_fields(self) -> tuple[str, ...]:
    """See `Task`."""
    return () if self.paired else ('makeup_image',)

  @abc.abstractmethod
  def code(self, state: TrainState, reference: Faces) -> jax.Array:
    """What is to be known of references, to be computed once for many targets: [B, ...]."""

  @abc.abstractmethod
  def wear(self, state: TrainState, target: Faces, code: jax.Array, level: jax.Array | None = None) -> jax.Array:
    """Targets with the makeup of `code` at `level` [B]: 0 their own, 1 (and None) the reference's.

    Returns pictures in [-1, 1], float32 [B, H, W, 3], not clipped.
    """

  def planes(self, blue: jax.Array, label: jax.Array, *, made_up: bool) -> dict[str, jax.Array]:
    """More fields of `Faces`, made from the blue [B, S, S] in [0, 1] of whole pictures before the square is cut."""
    del blue, label, made_up
    return {}

  def faces(
    self,
    image: jax.Array,
    label: jax.Array,
    *,
    made_up: bool,
    keys: jax.Array | None = None,
    blue: jax.Array | None = None,
    truth: jax.Array | None = None,
  ) -> Faces:
    """Pictures uint8 or [0, 1] [B, S, S, 3] and label maps [B, S, S] -> what the networks see; with `keys`, drawn.

    `blue` [B, S, S] where it was not resized as the pictures were, see `input_pipeline.Decode`.
    """
    image = to_float(image)
    blue = image[..., 2] if blue is None else to_float(blue)
    fields = {'image': 2 * image - 1, 'label': label, **self.planes(blue, label, made_up=made_up)}
    if truth is not None:
      fields['truth'] = to_signed(truth)
    return Faces(**(self.framing.centred(fields) if keys is None else self.framing.drawn(fields, keys)))

  def sides(self, batch: Batch, key: jax.Array) -> tuple[Faces, Faces]:
    """A training batch's references (A, with makeup) and targets (B, without), framed at random row by row.

    They have nothing to do with each other: each comes in an order of its own. Not so where the true result counts.
    """
    a_key, b_key = jax.random.split(key)
    truth = batch['makeup_image'] if self.paired else None
    return (
      self._references(batch, keys=row_keys(a_key, batch)),
      self._targets(batch, keys=row_keys(b_key, batch), truth=truth),
    )

  def _references(self, batch: Batch, **given: Any) -> Faces:
    image, label, blue = batch['reference_image'], batch['reference_label'], batch.get('reference_blue')
    return self.faces(image, label, blue=blue, made_up=True, **given)

  def _targets(self, batch: Batch, **given: Any) -> Faces:
    return self.faces(batch['image'], batch['label'], blue=batch.get('blue'), made_up=False, **given)

  @property
  def protocol(self) -> dict[str, str]:
    """What the names of the metrics leave open."""
    size = self.framing.crop_size
    window = min(_SSIM_WINDOW, size)
    return {
      'pictures': f'the middle {size}x{size} of {self.image_size}x{self.image_size}, [0, 1], clipped',
      'transfer': 'distance to the true made-up face, where the data has it',
      'pasted': 'the same of what `jaxface makeup` gives: the target plus what level 1 changes, background kept',
      'nothing': 'distance of the target itself to the true made-up face',
      'lips, eyes, skin': 'only those pixels; eyes: skin in the box around each eye; SSIM of windows by their share',
      'background': 'network output against the target outside skin, brows, nose and lips',
      'reconstruction': 'level 0 against the target',
      'ssim': f'Gaussian window {window}, sigma 1.5',
    }

  def eval_step(self, state: TrainState, batch: Batch, key: jax.Array) -> Metrics:
    """Measures per example [B], 'what/metric'; those of a region are 0 where a face lacks it, which 'what/has' says."""
    del key
    seen = self._transfer(state, batch)
    target, kept = to_unit(seen.target.image), keep_mask(seen.target.label)
    metrics = {
      **_whole('reconstruction', target, seen.own),
      **_region('background', target, seen.result, kept[..., 0], measures=('l1',)),
    }
    if seen.truth is None:
      return metrics
    areas = _areas(seen.target.label)
    for name, picture in seen.made().items():
      metrics |= _whole(name, seen.truth, picture)
      for area, mask in areas.items():
        metrics |= _region(f'{name}, {area}', seen.truth, picture, mask)
    return metrics

  def summary(self, means: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The averages; those of a region over the faces that have it."""
    made = ('transfer', 'pasted', 'nothing')
    protocols = [*made, 'reconstruction', 'background']
    protocols += [f'{name}, {area}' for area in ('lips', 'eyes', 'skin') for name in made]
    summary = {}
    for protocol in protocols:
      having = float(means.get(f'{protocol}/has', 1.0))
      for metric in ('l1', 'psnr', 'ssim'):
        if f'{protocol}/{metric}' in means and having > 0:
          summary[f'{protocol}/{metric}'] = float(means[f'{protocol}/{metric}']) / having
    return summary

  def compared(self, state: TrainState, batch: Batch) -> Compared:
    """True and made pictures, whole and with only a region not the true one; references and results; who is who."""
    seen = self._transfer(state, batch)
    made = seen.made()
    pairs, has = {}, {}
    if seen.truth is not None:
      pairs = {name: (seen.truth, picture) for name, picture in made.items()}
      for area, mask in _areas(seen.target.label).items():
        for name, picture in made.items():
          pairs[f'{name}, {area}'] = (seen.truth, jnp.where(mask[..., None] > 0, picture, seen.truth))
          has[f'{name}, {area}'] = mask.any((1, 2)).astype(jnp.float32)
    return Compared(
      pairs=pairs,
      has=has,
      real=to_unit(seen.reference.image),
      sets=made,
      persons={name: (made['nothing'], made[name]) for name in ('transfer', 'pasted')},
    )

  def render(self, state: TrainState, batch: Batch, key: jax.Array) -> Metrics:
    """Columns to look at: who wears, whose makeup, the transfer at levels 1, 0.5 and 0, and the true result."""
    del key
    seen = self._transfer(state, batch)
    made = seen.made()
    code = self.code(state, seen.reference)
    half = self.wear(state, seen.target, code, jnp.full(len(code), 0.5))
    columns = {
      'target': made['nothing'],
      'reference': to_unit(seen.reference.image),
      'transfer': made['transfer'],
      'pasted': made['pasted'],
      'half': to_unit(half),
      'reconstruction': seen.own,
    }
    return columns if seen.truth is None else {**columns, 'true': seen.truth}

  def _transfer(self, state: TrainState, batch: Batch) -> '_Seen':
    target, reference = self._targets(batch, truth=batch.get('makeup_image')), self._references(batch)
    code = self.code(state, reference)
    result = to_unit(self.wear(state, target, code))
    own = to_unit(self.wear(state, target, code, jnp.zeros(len(code))))
    truth = None if target.truth is None else to_unit(target.truth)
    return _Seen(target, reference, result, own, truth)


class _Seen(NamedTuple):
  """A batch in evaluation; `result`, `own` (at level 0) and `truth` in [0, 1]."""

  target: Faces
  reference: Faces
  result: jax.Array
  own: jax.Array
  truth: jax.Array | None

  def made(self) -> dict[str, jax.Array]:
    """What is held beside the true result, in [0, 1] by protocol."""
    target = to_unit(self.target.image)
    pasted = jnp.clip(target + (1 - keep_mask(self.target.label)) * (self.result - self.own), 0, 1)
    return {'transfer': self.result, 'pasted': pasted, 'nothing': target}


def _areas(label: jax.Array) -> dict[str, jax.Array]:
  """Masks float32 [B, H, W] of where makeup is put."""
  found = regions(label, margin=max(1, round(EYE_MARGIN * label.shape[1])), neck=False)
  return {'lips': found['lip'], 'eyes': jnp.maximum(found['left_eye'], found['right_eye']), 'skin': found['skin']}


def region_loss(true: jax.Array, made: jax.Array, label: jax.Array) -> jax.Array:
  """l1 over the picture, and again over lips, around the eyes and over skin; scalar.

  Each region counts alike, however few its pixels are. `true` and `made` [B, H, W, 3], `label` [B, H, W]. Not in any
  paper: only rendered faces have a true result.
  """
  loss = pixel.l1(true, made)
  for mask in _areas(label).values():
    loss += _region('area', true, made, mask, measures=('l1',))['area/l1']
  return loss.mean()


def colours_loss(styles: jax.Array, faces: Faces) -> jax.Array:
  """l1 of styles' [B, D] first nine numbers to colours of the face; scalar.

  Those are means over regions of `faces.image`, in [-1, 1]: twice what lips differ by from skin, four times what the
  eyes' surroundings do, and skin. Enlarged, makeup is no small difference of large numbers that all follow the skin's.
  What a face lacks does not count. Not in any paper: it makes a code say early what the decoder is to paint with.
  """
  areas = _areas(faces.label)
  lips, eyes, skin = ((faces.image * _shares(areas[area])).sum((1, 2)) for area in ('lips', 'eyes', 'skin'))
  wanted = {'lips': 2 * (lips - skin), 'eyes': 4 * (eyes - skin), 'skin': skin}
  loss = 0.0
  for (area, colour), said in zip(wanted.items(), jnp.split(styles[:, :COLOURS], 3, axis=1), strict=True):
    known = areas[area].any((1, 2)) & areas['skin'].any((1, 2))
    loss += jnp.where(known[:, None], jnp.abs(said - colour), 0).mean() / 3
  return loss


def _shares(mask: jax.Array) -> jax.Array:
  """Weights [B, H, W, 1] of the mean over a region's pixels, of its mask [B, H, W]; 0 where it has none."""
  return mask[..., None] / jnp.maximum(mask.sum((1, 2)), 1)[:, None, None, None]


def _window(image: jax.Array) -> int:
  return min(_SSIM_WINDOW, *image.shape[1:3])


def _whole(name: str, true: jax.Array, made: jax.Array) -> dict[str, jax.Array]:
  return {
    f'{name}/l1': pixel.l1(true, made),
    f'{name}/psnr': pixel.psnr(true, made),
    f'{name}/ssim': ssim(true, made, filter_size=_window(true)),
  }


def _region(
  name: str, true: jax.Array, made: jax.Array, mask: jax.Array, measures: tuple[str, ...] = ('l1', 'psnr', 'ssim')
) -> dict[str, jax.Array]:
  """Measures over the pixels of `mask` [B, H, W]; 0 for a row without any, for which 'has' is 0."""
  has = mask.any((1, 2)).astype(jnp.float32)
  share = _shares(mask) / true.shape[-1]
  difference = true - made
  mse = (jnp.square(difference) * share).sum((1, 2, 3))
  found = {
    'l1': lambda: (jnp.abs(difference) * share).sum((1, 2, 3)),
    'psnr': lambda: pixel.psnr_of(mse),
    'ssim': lambda: ssim(true, made, filter_size=_window(true), mask=mask[..., None]),
  }
  return {f'{name}/has': has, **{f'{name}/{measure}': found[measure]() * has for measure in measures}}


def make_framing(config: ConfigDict, image_size: int) -> Framing:
  """The framing that the `augment` part of an experiment describes, for pictures of `image_size`."""
  if config.crop_size % 4 or not 32 <= config.crop_size <= image_size:
    raise UserError(
      f'augment.crop_size={config.crop_size} must be a multiple of 4, at least 32 and at most '
      f'model.image_size={image_size}'
    )
  return Framing(config.crop_size, random_crop=config.random_crop, flip=config.flip)
