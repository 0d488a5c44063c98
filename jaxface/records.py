"""The records of a prepared dataset, of which only what is wanted is decoded."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader

from jaxface.errors import UserError

# Where a source lay does not tell what it is.
_PLACES = ('source', 'labels')


def open_records(builder: tfds.core.DatasetBuilder, split: str, wanted: Collection[str]) -> Sequence[Mapping[str, Any]]:
  """Random access to split `split`; the values of features that are not `wanted` are left encoded.

  UserError where a file is missing or cut off.
  """
  _check_whole(builder.info.splits[split])
  unused = {name: _skip(feature) for name, feature in builder.info.features.items() if name not in wanted}
  return builder.as_data_source(split, decoders=unused)


def content(builder: tfds.core.DatasetBuilder) -> str:
  """Eight digits that differ where datasets of one name and version were made of other files or with other options."""
  made_from = {key: (builder.info.metadata or {}).get(key) for key in ('options', 'source_digest')}
  options = {key: value for key, value in (made_from['options'] or {}).items() if key not in _PLACES}
  return hashlib.sha256(json.dumps(made_from | {'options': options}, sort_keys=True).encode()).hexdigest()[:8]


def _check_whole(split: tfds.core.SplitInfo) -> None:
  # TFDS counts by its own notes, and would find a copy cut off where a record cannot be read.
  for path, count in zip(split.filepaths, split.shard_lengths, strict=True):
    there = ArrayRecordReader(str(path)).num_records() if path.is_file() else 0
    if there != count:
      raise UserError(f'{path}: {there} of {count} records are there; copy the dataset again, or prepare it anew')


def _skip(feature: tfds.features.FeatureConnector) -> Any:
  """What tells TFDS not to decode a feature: of one that holds others, each by itself."""
  if isinstance(feature, tfds.features.FeaturesDict):
    return {name: _skip(inner) for name, inner in feature.items()}
  return tfds.decode.SkipDecoding()
