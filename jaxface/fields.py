"""The fields of a batch: what a task may ask for, and what of a prepared dataset each is made of."""

from collections.abc import Mapping
from typing import Any

# Field -> stored feature.
FIELDS = {
  'image': 'image',
  'label': 'label',
  'mask': 'label',
  'blue': 'image',
  'makeup_image': 'makeup_image',
  'reference_image': 'reference_image',
  'reference_label': 'reference_label',
  'reference_blue': 'reference_image',
}

# Fields of another picture that goes with the row's own, such as the wearer of the makeup to transfer. In training they
# come in a random order of their own, but for a task that needs the true result of the two.
REFERENCE = 'reference_'


def take(dataset: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
  """The records of a whole dataset, {field: [N, ...]}, that a batch numbers: by 'index', and by 'reference_index'."""
  own = f'{REFERENCE}index' in batch
  index = lambda field: batch[f'{REFERENCE}index' if own and field.startswith(REFERENCE) else 'index']
  return {'row': batch['row'], **{field: records[index(field)] for field, records in dataset.items()}}
