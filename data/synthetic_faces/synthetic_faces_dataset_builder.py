"""TFDS builder of rendered faces with exact label maps: the embedded default, needing no download."""

import dataclasses
import functools
import io
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import cv2
import numpy as np
import tensorflow_datasets as tfds

from jaxface import labels
from jaxface.errors import UserError
from jaxface.workers import end_with_parent

from .references import reference_index
from .render import render, render_pair

# Starting a process costs about as much as rendering this many faces.
_WORTH_A_POOL = 512
_SHARD_BYTES = 128 * 2**20
# Of sensor noise little repeats: to look for it takes most of the time, at any level, and saves no byte.
_PICTURE = (cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY)
_LABELS = (cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE)


@dataclasses.dataclass(eq=False)
class SyntheticFacesConfig(tfds.core.BuilderConfig):
  """Which faces, and how large.

  Attributes:
    size: side of the square pictures, pixels.
    count: number of faces, over all splits.
    seed: which endless set of faces they are the first `count` of.
    makeup_pairs: also store every face with makeup, the makeup's parameters, and somebody else who wears the same.
    aligned: the eyes of all faces lie at the same two points, up to a small error.
  """

  size: int = 144
  count: int = 20_000
  seed: int = 0
  makeup_pairs: bool = False
  aligned: bool = False


def make_config(
  *, size: int = 144, count: int = 20_000, seed: int = 0, makeup_pairs: bool = False, aligned: bool = False
) -> SyntheticFacesConfig:
  """A config: `faces_<size>`, `faces_aligned_<size>`, `makeup_<size>`, `makeup_aligned_<size>`."""
  if size < 16:
    raise UserError(f'size={size} is too small for a face; choose 16 pixels or more')
  if count < 1:
    raise UserError(f'count={count} makes no dataset; choose 1 or more, 10 or more for all three splits')
  if seed < 0:
    raise UserError(f'seed={seed} is negative; choose 0 or more')
  kind = 'makeup' if makeup_pairs else 'faces'
  return SyntheticFacesConfig(
    name=f'{kind}_aligned_{size}' if aligned else f'{kind}_{size}',
    size=size,
    count=count,
    seed=seed,
    makeup_pairs=makeup_pairs,
    aligned=aligned,
  )


def split_indices(count: int) -> dict[str, list[int]]:
  """Split name -> the indices of its faces: of every ten, one each for validation and test."""
  split_of = {8: 'validation', 9: 'test'}
  splits = {'train': [], 'validation': [], 'test': []}
  for index in range(count):
    splits[split_of.get(index % 10, 'train')].append(index)
  return splits


# GeneratorBasedBuilder gathers a split of more than 1 GB in temporary files that it opens with TensorFlow;
# ShardBasedBuilder writes each shard straight from its examples, in order.
class Builder(tfds.core.ShardBasedBuilder):
  """Rendered faces with exact label maps.

  Args:
    workers: processes that render; default one a CPU core. Few faces are rendered without.
  """

  VERSION = tfds.core.Version('1.3.0')
  RELEASE_NOTES = {  # noqa: RUF012 - TFDS reads a plain class attribute
    '1.0.0': 'First release.',
    '1.1.0': 'Rendered in less time; the same people before other backgrounds.',
    '1.2.0': 'Aligned faces; with makeup pairs somebody else who wears the makeup, which is seen more clearly.',
    '1.3.0': 'Prepared in less time; pictures differ by rounding, label maps do not.',
  }

  def __init__(self, *, workers: int | None = None, **kwargs):
    self.workers = workers or os.cpu_count() or 1
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    config = self.builder_config
    features = {'id': tfds.features.Text(), 'image': _picture(3), 'label': _picture(1)}
    if config.makeup_pairs:
      names = render(0, 0, size=16).makeup
      features |= {
        'makeup_image': _picture(3),
        'makeup': {name: tfds.features.Scalar(np.float32) for name in names},
        'reference_image': _picture(3),
        'reference_label': _picture(1),
      }
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(features),
      metadata=tfds.core.MetadataDict(
        label_order='celebamask_hq',
        classes=list(labels.CLASSES),
        seed=config.seed,
        count=config.count,
        size=config.size,
        aligned=config.aligned,
      ),
    )

  def _shard_iterators_per_split(self, dl_manager) -> dict[str, list[Callable[[], Iterator]]]:
    del dl_manager
    return {
      name: [
        functools.partial(self._generate_examples, indices[at : at + self._shard_length])
        for at in range(0, len(indices), self._shard_length)
      ]
      for name, indices in split_indices(self.builder_config.count).items()
      if indices
    }

  @property
  def _shard_length(self) -> int:
    """Faces a shard: TFDS holds one shard in memory."""
    config = self.builder_config
    return max(1, _SHARD_BYTES // (config.size**2 * (6 if config.makeup_pairs else 2)))

  def _generate_examples(self, indices: Iterable[int]) -> Iterator[tuple[str, dict]]:
    """Yields (key, example) in order of the indices; UserError where a process that renders them is killed."""
    config, indices = self.builder_config, list(indices)
    make = functools.partial(
      _example, size=config.size, seed=config.seed, makeup_pairs=config.makeup_pairs, aligned=config.aligned
    )
    workers = min(self.workers, len(indices) // _WORTH_A_POOL)
    if workers < 2:
      yield from map(_readable, map(make, indices))
      return
    # Spawned, not forked: the caller may hold JAX's threads and locks, which a fork would copy half-held.
    with ProcessPoolExecutor(workers, multiprocessing.get_context('spawn'), _begin_worker) as pool:
      try:
        yield from map(_readable, pool.map(make, indices, chunksize=32))
      except BrokenProcessPool as error:
        raise UserError(
          'a process that renders faces was killed, as happens where memory is short; say the same again with fewer '
          f'--workers than {workers}'
        ) from error
      finally:
        pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
  cv2.setNumThreads(1)
  # Ctrl-C reaches all processes; the one that these work for cancels what is left.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  end_with_parent()


def _picture(channels: int) -> tfds.features.Image:
  return tfds.features.Image(shape=(None, None, channels), dtype=np.uint8, encoding_format='png')


def _example(index: int, *, size: int, seed: int, makeup_pairs: bool, aligned: bool) -> tuple[str, dict]:
  """Renders one example; pictures as encoded bytes, which travel between processes at half the size."""
  key = f'{index:08d}'
  options = {'size': size, 'aligned': aligned}
  face, made_up = render_pair(seed, index, **options) if makeup_pairs else (render(seed, index, **options), None)
  example = {'id': key, 'image': _picture_png(face.image), 'label': _png(face.label, _LABELS)}
  if makeup_pairs:
    reference = render(seed, reference_index(seed, index), makeup=face.makeup, **options)
    example |= {
      'makeup_image': _picture_png(made_up.image),
      'makeup': face.makeup,
      'reference_image': _picture_png(reference.image),
      'reference_label': _png(reference.label, _LABELS),
    }
  return key, example


def _picture_png(image: np.ndarray) -> bytes:
  return _png(cv2.cvtColor(image, cv2.COLOR_RGB2BGR), _PICTURE)


def _png(pixels: np.ndarray, options: tuple[int, int]) -> bytes:
  """Encodes pixels that are in OpenCV's channel order."""
  done, encoded = cv2.imencode('.png', pixels, options)
  assert done, pixels.shape
  return encoded.tobytes()


def _readable(keyed: tuple[str, dict]) -> tuple[str, dict]:
  """TFDS takes encoded pictures as files."""
  key, example = keyed
  return key, {name: io.BytesIO(value) if isinstance(value, bytes) else value for name, value in example.items()}
