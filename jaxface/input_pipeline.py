"""Prepared dataset -> Grain -> batches of uint8 numpy arrays; also whole datasets for device-resident training.

The order of training examples is a function of the seed alone. Batch t of a run is rows t*B .. t*B + B - 1 of one
endless shuffled order, and process p of P takes every P-th of them, so the same examples meet in batch t however many
processes, workers or devices there are. A position in the data is therefore one number, the next batch, which is saved
with the state and restores onto any number of hosts (Grain's own iterator state would tie a run to its workers).
"""

import dataclasses
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import grain
import numpy as np
import tensorflow_datasets as tfds
from absl import flags
from PIL import Image

from jaxface import labels
from jaxface.area import by_pillow, to_square
from jaxface.errors import UserError
from jaxface.fields import FIELDS, REFERENCE
from jaxface.prepare import find_prepared
from jaxface.records import content, open_records
from jaxface.workers import end_with_parent

Record = Mapping[str, Any]
NumpyBatch = dict[str, np.ndarray]

RESIZES = ('bilinear', 'antialiased', 'area')

# Companions come in another order than the pictures they go with.
_COMPANIONS_SEED = 1_000_003


@dataclasses.dataclass(frozen=True)
class Decode(grain.transforms.Map):
  """Stored record -> the fields a task asked for, uint8 at the network's picture size.

  'image', 'makeup_image' [S, S, 3]; 'label' [S, S] nearest; 'mask' [S, S, 1]: the face region (0 or 1 at the stored
  size) resized as the pictures are, so its edge is soft, times 255 (Toledo & Antonelo 2021); 'blue' [S, S]: of 'image',
  always bicubic and antialiased, for IPM-Net's texture; 'reference_...' as without. The aspect ratio is not kept.
  `resize` 'bilinear' is OpenCV's, as the face-mask VAE's public code has it (no antialiasing); 'antialiased' is
  Pillow's, which torchvision has; 'area' averages along an axis that shrinks. With `own_split` the references are
  pictures of a split of their own, stored there as 'image' and 'label'.
  """

  fields: tuple[str, ...]
  image_size: int
  resize: str = 'bilinear'
  own_split: bool = False

  def feature(self, field: str) -> str:
    """The stored feature that `field` is made of."""
    return FIELDS[field].removeprefix(REFERENCE) if self.own_split else FIELDS[field]

  def map(self, record: Record) -> NumpyBatch:
    """Decodes nothing: TFDS did; picks and resizes."""
    return {
      field: getattr(self, '_' + field.removeprefix(REFERENCE))(record[self.feature(field)]) for field in self.fields
    }

  def _resized(self, picture: np.ndarray, interpolation: int) -> np.ndarray:
    size = (self.image_size, self.image_size)
    return picture if picture.shape[:2] == size else cv2.resize(picture, size, interpolation=interpolation)

  def _image(self, picture: np.ndarray) -> np.ndarray:
    if self.resize == 'area':
      return to_square(picture, self.image_size)
    if self.resize == 'antialiased':
      return by_pillow(picture, (self.image_size, self.image_size), Image.Resampling.BILINEAR)
    return self._resized(picture, cv2.INTER_LINEAR)

  _makeup_image = _image

  def _blue(self, picture: np.ndarray) -> np.ndarray:
    blue, side = picture[..., 2], self.image_size
    # Rows first and rounded, as MATLAB has it.
    for size in ((blue.shape[1], side), (side, side)):
      blue = by_pillow(blue, size, Image.Resampling.BICUBIC)
    return blue

  def _label(self, label: np.ndarray) -> np.ndarray:
    return self._resized(label[..., 0], cv2.INTER_NEAREST_EXACT)

  def _mask(self, label: np.ndarray) -> np.ndarray:
    face = labels.FACE[label[..., 0]]
    if face.shape == (self.image_size, self.image_size):
      return face[..., None] * np.uint8(255)
    soft = self._image(face.astype(np.float32))
    return np.rint(soft * 255).astype(np.uint8)[..., None]


@dataclasses.dataclass(frozen=True)
class Companion:
  """Records that go with those of a dataset, the references of a transfer.

  Attributes:
    rows: int [N], the record that goes with record n of the dataset in evaluation.
    paired: record n goes with record n in training, too; otherwise these come in a random order of their own.
  """

  source: Sequence[Record]
  decode: Decode
  rows: np.ndarray
  paired: bool = False

  def __len__(self) -> int:
    return len(self.source)

  def seed(self, seed: int) -> int:
    """Of the order in training, where `seed` is that of the pictures these go with."""
    return seed if self.paired else seed + _COMPANIONS_SEED


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A prepared dataset, opened: one split's records, and what a task wants of them."""

  source: Sequence[Record]
  decode: Decode
  name: str
  # Name, version, split, length, and digits of what it was made of: a run may only go on with the data it began with.
  fingerprint: str
  companion: Companion | None = None

  def __len__(self) -> int:
    return len(self.source)

  def example(self, row: int) -> NumpyBatch:
    """Everything of record `row`, its companion as evaluation pairs them."""
    example = self.decode.map(self.source[row])
    if self.companion is not None:
      example |= self.companion.decode.map(self.companion.source[self.companion.rows[row]])
    return example


def open_dataset(
  name: str,
  split: str,
  fields: Sequence[str],
  *,
  image_size: int,
  optional_fields: Sequence[str] = (),
  data_dir: str | None = None,
  resize: str = 'bilinear',
  draw: int | None = None,
) -> Dataset:
  """Opens split `split` of prepared dataset `name` ('synthetic_faces/faces_144', ...) under `data_dir`.

  Where `fields` asks for references, they are those stored beside every picture, if there are such; otherwise the
  pictures are the split `<split>_non_makeup` and the references `<split>_makeup`. In evaluation a picture gets its own
  reference or, where there is none or `draw` is a number, one drawn at random, for every `draw` another; for these
  there is no true result ('makeup_image'). Where `fields` asks for that, a picture gets its own reference in training,
  too.

  Raises UserError where the dataset or split is missing, or cannot give one of `fields`; `optional_fields` are given
  where it can.
  """
  if resize not in RESIZES:
    raise UserError(f'unknown data.resize {resize!r}; choose from {", ".join(RESIZES)}')
  builder = tfds.builder_from_directory(find_prepared(data_dir, name))
  features = builder.info.features
  required = fields
  if draw is not None:
    optional_fields = [field for field in optional_fields if field != 'makeup_image']
  fields = (*fields, *(field for field in optional_fields if FIELDS[field] in features))
  wanted = tuple(field for field in fields if field.startswith(REFERENCE))
  pictures = Decode(tuple(field for field in fields if field not in wanted), image_size, resize)
  if not wanted:
    source, fingerprint = _open_split(builder, name, split, pictures)
    return Dataset(source, pictures, name, fingerprint)
  references = Decode(wanted, image_size, resize, own_split=FIELDS[wanted[0]] not in features)
  splits = (f'{split}_non_makeup', f'{split}_makeup') if references.own_split else (split, split)
  source, fingerprint = _open_split(builder, name, splits[0], pictures)
  others, _ = _open_split(builder, name, splits[1], references)
  if draw is None and not references.own_split:
    rows = np.arange(len(source))
  else:
    rows = np.random.default_rng(draw or 0).integers(0, len(others), len(source))
  paired = 'makeup_image' in required
  fingerprint += f' {"and their" if paired else "with"} {splits[1]}/{len(others)}'
  return Dataset(source, pictures, name, fingerprint, Companion(others, references, rows, paired))


def _open_split(
  builder: tfds.core.DatasetBuilder, name: str, split: str, decode: Decode
) -> tuple[Sequence[Record], str]:
  """The records of one split, only what `decode` reads of them decoded, and what names them."""
  counts = {key: info.num_examples for key, info in builder.info.splits.items()}
  if not counts.get(split):
    pairs = '; `jaxface prepare` makes makeup_transfer, or synthetic_faces --makeup-pairs' if 'makeup' in split else ''
    raise UserError(f'dataset {name} has no examples in split {split!r}; it has {counts}{pairs}')
  stored = sorted({decode.feature(field) for field in decode.fields})
  missing = [feature for feature in stored if feature not in builder.info.features]
  if missing:
    way_out = (
      'prepare it with --labels, or train a variant without masks' if missing == ['label'] else 'choose another dataset'
    )
    raise UserError(f'dataset {name} has no {" and no ".join(missing)}; {way_out}')
  return open_records(builder, split, stored), f'{builder.info.full_name}/{split}/{counts[split]}#{content(builder)}'


def _order(source: Any, seed: int) -> grain.MapDataset:
  return source.seed(seed).shuffle().repeat()


def _rows_of_process(batch_size: int, process: tuple[int, int]) -> np.ndarray:
  index, count = process
  return np.arange(index, batch_size, count, dtype=np.int32)


def _with_rows(batches: grain.IterDataset | grain.MapDataset, rows: np.ndarray) -> Any:
  return batches.map(lambda batch: {**batch, 'row': rows})


def _live_as_long_as_the_run(worker: int, count: int) -> None:
  """Ctrl-C and a scheduler's signal reach workers, too, but the run still needs their batches; without it they end."""
  del worker, count
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
  end_with_parent()


def _prefetched(batches: grain.MapDataset, workers: int) -> Iterator[NumpyBatch]:
  reading = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
  stream = batches.to_iter_dataset(reading)
  if workers:
    # Grain's workers read absl flags, which only an absl program would have parsed.
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
    stream = stream.mp_prefetch(options, worker_init_fn=_live_as_long_as_the_run)
  return iter(stream)


def default_workers() -> int:
  """Decoding processes that leave this machine's cores to the rest: none on a small one, where threads do."""
  # Those that a scheduler gave to this process, where the system tells.
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
  return 0 if cores <= 4 else min(16, cores // 2)


def _check_enough(dataset: Dataset, batch_size: int) -> None:
  if batch_size > len(dataset):
    raise UserError(
      f'batch_size={batch_size} is more than the {len(dataset)} examples of {dataset.name}; '
      f'choose at most {len(dataset)}'
    )


class TrainBatches:
  """The endless stream of this process's training batches, from batch `next_batch` on.

  Iterating gives {field: uint8 [B/P, ...], 'row': int32 [B/P]}. `workers` processes decode; 0 leaves it to threads, -1
  to `default_workers`.
  """

  def __init__(
    self, dataset: Dataset, *, batch_size: int, seed: int, next_batch: int, process: tuple[int, int], workers: int
  ):
    _check_enough(dataset, batch_size)
    if workers < 0:
      workers = default_workers()
    rows = _rows_of_process(batch_size, process)

    def examples(part: Dataset | Companion, seed: int) -> grain.MapDataset:
      return _order(grain.MapDataset.source(part.source), seed)[process[0] :: process[1]].map(part.decode)

    pictures = examples(dataset, seed)
    if dataset.companion is not None:
      pairs = [pictures, examples(dataset.companion, dataset.companion.seed(seed))]
      pictures = grain.experimental.ZipMapDataset(pairs).map(lambda pair: pair[0] | pair[1])
    # The stream has no end; without `drop_remainder` Grain counts batches of one in float64, beyond all integers.
    batches = pictures.batch(len(rows), drop_remainder=True)[next_batch:]
    self._iterator = _prefetched(_with_rows(batches, rows), workers)

  def __iter__(self) -> 'TrainBatches':
    return self

  def __next__(self) -> NumpyBatch:
    return next(self._iterator)


class ResidentBatches:
  """The same stream as `TrainBatches`, as row numbers into a dataset that lives on the devices: 'index', 'row'.

  Where there are companions, 'reference_index' numbers them.
  """

  def __init__(self, dataset: Dataset, *, batch_size: int, seed: int, next_batch: int, process: tuple[int, int]):
    _check_enough(dataset, batch_size)
    self._next_batch = next_batch
    self._rows = _rows_of_process(batch_size, process)

    def batches(part: Dataset | Companion, seed: int) -> grain.MapDataset:
      return _order(grain.MapDataset.range(len(part)), seed)[process[0] :: process[1]].batch(len(self._rows))

    self._batches = {'index': batches(dataset, seed)}
    if dataset.companion is not None:
      self._batches[f'{REFERENCE}index'] = batches(dataset.companion, dataset.companion.seed(seed))

  def __iter__(self) -> 'ResidentBatches':
    return self

  def __next__(self) -> NumpyBatch:
    index = {name: np.asarray(batches[self._next_batch], np.int32) for name, batches in self._batches.items()}
    self._next_batch += 1
    return {**index, 'row': self._rows}


def load_whole(dataset: Dataset) -> NumpyBatch:
  """Decodes a whole split, and its companions, into memory: {field: uint8 [N, ...]}, in stored order."""
  whole: NumpyBatch = {}
  for part in (dataset, dataset.companion):
    if part is None:
      continue
    examples = grain.MapDataset.source(part.source).map(part.decode)
    stream = examples.to_iter_dataset(grain.ReadOptions(num_threads=os.cpu_count() or 1, prefetch_buffer_size=64))
    for i, example in enumerate(stream):
      for field, value in example.items():
        whole.setdefault(field, np.empty((len(part), *value.shape), value.dtype))[i] = value
  return whole


def eval_batches(
  dataset: Dataset, *, batch_size: int, process: tuple[int, int] = (0, 1), limit: int = 0
) -> Iterator[NumpyBatch]:
  """Every example once, in stored order, in batches of one shape; 'weight' is 0 in rows that only fill up the last.

  `limit` > 0 stops after so many batches. Every process yields the same number of batches.
  """
  total = len(dataset)
  batches = -(-total // batch_size)
  rows = _rows_of_process(batch_size, process)
  # Rows past the end repeat the last example, with weight 0.
  padded = grain.MapDataset.range(batches * batch_size).map(lambda i: min(int(i), total - 1))
  examples = padded.map(dataset.example)[process[0] :: process[1]].batch(len(rows))
  if limit:
    examples = examples[:limit]
  for number, batch in enumerate(_prefetched(examples, workers=0)):
    weight = (number * batch_size + rows < total).astype(np.float32)
    yield {**batch, 'row': rows, 'weight': weight}
