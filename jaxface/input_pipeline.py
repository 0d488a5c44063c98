"""Prepared dataset -> Grain -> batches of uint8 numpy arrays; also whole datasets for device-resident training.

The order of training examples is a function of the seed alone. Batch t of a run is rows t*B .. t*B + B - 1 of one
endless shuffled order, and process p of P takes every P-th of them, so the same examples meet in batch t however many
processes, workers or devices there are. A position in the data is therefore one number, the next batch, which is saved
with the state and restores onto any number of hosts (Grain's own iterator state would tie a run to its workers).
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import grain
import numpy as np
import tensorflow_datasets as tfds
from absl import flags

from jaxface import labels
from jaxface.errors import UserError
from jaxface.prepare import find_prepared

Record = Mapping[str, Any]
NumpyBatch = dict[str, np.ndarray]

# What a task may ask for, and the stored features it is made of.
FIELDS = {'image': 'image', 'label': 'label', 'mask': 'label', 'makeup_image': 'makeup_image'}

RESIZES = {'bilinear': cv2.INTER_LINEAR, 'area': cv2.INTER_AREA}


@dataclasses.dataclass(frozen=True)
class Decode(grain.transforms.Map):
  """Stored record -> the fields a task asked for, uint8 at the network's picture size.

  'image', 'makeup_image' [S, S, 3]; 'label' [S, S] nearest; 'mask' [S, S, 1]: the face region (0 or 1 at the stored
  size) resized bilinearly, so its edge is soft, times 255 (Toledo & Antonelo 2021). The aspect ratio is not kept.
  `resize` 'bilinear' is what the public code does (no antialiasing); 'area' averages where a picture shrinks a lot.
  """

  fields: tuple[str, ...]
  image_size: int
  resize: str = 'bilinear'

  def map(self, record: Record) -> NumpyBatch:
    """Decodes nothing: TFDS did; picks and resizes."""
    return {field: getattr(self, f'_{field}')(record[FIELDS[field]]) for field in self.fields}

  def _resized(self, picture: np.ndarray, interpolation: int) -> np.ndarray:
    size = (self.image_size, self.image_size)
    return picture if picture.shape[:2] == size else cv2.resize(picture, size, interpolation=interpolation)

  def _image(self, picture: np.ndarray) -> np.ndarray:
    shrinks = min(picture.shape[:2]) > self.image_size
    # Area averaging only means something where the picture gets smaller.
    return self._resized(picture, RESIZES[self.resize] if shrinks else cv2.INTER_LINEAR)

  _makeup_image = _image

  def _label(self, label: np.ndarray) -> np.ndarray:
    return self._resized(label[..., 0], cv2.INTER_NEAREST_EXACT)

  def _mask(self, label: np.ndarray) -> np.ndarray:
    face = labels.FACE[label[..., 0]]
    if face.shape == (self.image_size, self.image_size):
      return face[..., None] * np.uint8(255)
    soft = self._resized(face.astype(np.float32), RESIZES[self.resize])
    return np.rint(soft * 255).astype(np.uint8)[..., None]


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A prepared dataset, opened: one split's records, and what a task wants of them."""

  source: Sequence[Record]
  decode: Decode
  name: str
  fingerprint: str  # Name, version, split and length: a run may only go on with the data it began with.

  def __len__(self) -> int:
    return len(self.source)


def open_dataset(
  name: str,
  split: str,
  fields: Sequence[str],
  *,
  image_size: int,
  optional_fields: Sequence[str] = (),
  data_dir: str | None = None,
  resize: str = 'bilinear',
) -> Dataset:
  """Opens split `split` of prepared dataset `name` ('synthetic_faces/faces_144', ...) under `data_dir`.

  Raises UserError where the dataset or split is missing, or cannot give one of `fields`; `optional_fields` are given
  where it can.
  """
  if resize not in RESIZES:
    raise UserError(f'unknown data.resize {resize!r}; choose from {", ".join(RESIZES)}')
  builder = tfds.builder_from_directory(find_prepared(data_dir, name))
  counts = {key: info.num_examples for key, info in builder.info.splits.items()}
  if not counts.get(split):
    raise UserError(f'dataset {name} has no examples in split {split!r}; it has {counts}')
  fields = (*fields, *(field for field in optional_fields if FIELDS[field] in builder.info.features))
  stored = sorted({FIELDS[field] for field in fields})
  missing = [feature for feature in stored if feature not in builder.info.features]
  if missing:
    way_out = (
      'prepare it with --labels, or train a variant without masks' if missing == ['label'] else 'choose another dataset'
    )
    raise UserError(f'dataset {name} has no {" and no ".join(missing)}; {way_out}')
  unused = {feature: tfds.decode.SkipDecoding() for feature in builder.info.features if feature not in stored}
  source = builder.as_data_source(split, decoders=unused)
  fingerprint = f'{builder.info.full_name}/{split}/{counts[split]}'
  return Dataset(source, Decode(fields, image_size, resize), name, fingerprint)


def _order(source: Any, seed: int) -> grain.MapDataset:
  return source.seed(seed).shuffle().repeat()


def _rows_of_process(batch_size: int, process: tuple[int, int]) -> np.ndarray:
  index, count = process
  return np.arange(index, batch_size, count, dtype=np.int32)


def _with_rows(batches: grain.IterDataset | grain.MapDataset, rows: np.ndarray) -> Any:
  return batches.map(lambda batch: {**batch, 'row': rows})


def _prefetched(batches: grain.MapDataset, workers: int, threads: int = 2) -> Iterator[NumpyBatch]:
  reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
  stream = batches.to_iter_dataset(reading)
  if workers:
    # Grain's workers read absl flags, which only an absl program would have parsed.
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()
    stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2))
  return iter(stream)


def default_workers() -> int:
  """Decoding processes that leave this machine's cores to the rest: none on a small one, where threads do."""
  cores = os.cpu_count() or 1
  return 0 if cores <= 4 else min(16, cores // 2)


class TrainBatches:
  """The endless stream of this process's training batches, from batch `next_batch` on.

  Iterating gives {field: uint8 [B/P, ...], 'row': int32 [B/P]}. `next_batch` counts what has been handed out. `workers`
  processes decode; 0 leaves it to threads, -1 to `default_workers`.
  """

  def __init__(
    self, dataset: Dataset, *, batch_size: int, seed: int, next_batch: int, process: tuple[int, int], workers: int
  ):
    if batch_size > len(dataset):
      raise UserError(
        f'batch_size={batch_size} is more than the {len(dataset)} examples of {dataset.name}; '
        f'choose at most {len(dataset)}'
      )
    if workers < 0:
      workers = default_workers()
    self.next_batch = next_batch
    rows = _rows_of_process(batch_size, process)
    examples = _order(grain.MapDataset.source(dataset.source), seed)[process[0] :: process[1]]
    batches = examples.map(dataset.decode).batch(len(rows))[next_batch:]
    self._iterator = _prefetched(_with_rows(batches, rows), workers)

  def __iter__(self) -> 'TrainBatches':
    return self

  def __next__(self) -> NumpyBatch:
    batch = next(self._iterator)
    self.next_batch += 1
    return batch


class ResidentBatches:
  """The same stream as `TrainBatches`, as row numbers into a dataset that lives on the devices: 'index', 'row'."""

  def __init__(self, dataset: Dataset, *, batch_size: int, seed: int, next_batch: int, process: tuple[int, int]):
    self.next_batch = next_batch
    self._rows = _rows_of_process(batch_size, process)
    order = _order(grain.MapDataset.range(len(dataset)), seed)[process[0] :: process[1]]
    self._batches = order.batch(len(self._rows))

  def __iter__(self) -> 'ResidentBatches':
    return self

  def __next__(self) -> NumpyBatch:
    index = np.asarray(self._batches[self.next_batch], np.int32)
    self.next_batch += 1
    return {'index': index, 'row': self._rows}


def load_whole(dataset: Dataset) -> NumpyBatch:
  """Decodes a whole split into memory: {field: uint8 [N, ...]}, in stored order."""
  examples = grain.MapDataset.source(dataset.source).map(dataset.decode)
  stream = examples.to_iter_dataset(grain.ReadOptions(num_threads=os.cpu_count() or 1, prefetch_buffer_size=64))
  whole: NumpyBatch = {}
  for i, example in enumerate(stream):
    for field, value in example.items():
      whole.setdefault(field, np.empty((len(dataset), *value.shape), value.dtype))[i] = value
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
  examples = padded.map(lambda i: dataset.decode.map(dataset.source[i]))[process[0] :: process[1]].batch(len(rows))
  if limit:
    examples = examples[:limit]
  for number, batch in enumerate(_prefetched(examples, workers=0)):
    weight = (number * batch_size + rows < total).astype(np.float32)
    yield {**batch, 'row': rows, 'weight': weight}
