"""The records of a prepared dataset, of which only what is wanted is decoded."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds


def open_records(builder: tfds.core.DatasetBuilder, split: str, wanted: Collection[str]) -> Sequence[Mapping[str, Any]]:
  """Random access to split `split`; the values of features that are not `wanted` are left encoded."""
  unused = {name: _skip(feature) for name, feature in builder.info.features.items() if name not in wanted}
  return builder.as_data_source(split, decoders=unused)


def _skip(feature: tfds.features.FeatureConnector) -> Any:
  """What tells TFDS not to decode a feature: of one that holds others, each by itself."""
  if isinstance(feature, tfds.features.FeaturesDict):
    return {name: _skip(inner) for name, inner in feature.items()}
  return tfds.decode.SkipDecoding()
