"""The least time a step can take on a chip: what it computes, moves and exchanges, each against the chip's peak.

An estimate, and from below: it knows nothing of stalls.
"""

import dataclasses
import math
from collections.abc import Sequence

from jaxface.aot.hlo import Collective
from jaxface.chips import Chip

# How often a ring sends each byte, in terms of what `Collective.bytes` means.
_SENT = {'all-reduce': 2.0, 'all-gather': 1.0, 'reduce-scatter': 1.0, 'all-to-all': 1.0, 'collective-permute': 1.0}


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Seconds that a chip needs at least for each of what a step does; exchanges beside work, and between it."""

  compute: float
  memory: float
  overlapped: float
  exposed: float

  @property
  def seconds(self) -> float:
    """Of a step: what runs side by side takes as long as the longest; what work waits for comes on top."""
    return max(self.compute, self.memory, self.overlapped) + self.exposed

  @property
  def bound(self) -> str:
    """What to make less of first: 'compute', 'memory' or 'exchange'."""
    side_by_side = {'compute': self.compute, 'memory': self.memory, 'exchange': self.overlapped}
    largest = max(side_by_side, key=side_by_side.get)
    return 'exchange' if self.exposed > side_by_side[largest] else largest


def roofline(
  *,
  flops: float,
  bytes_moved: float,
  exchanges: Sequence[Collective],
  chip: Chip,
  dtype: str,
  torus: Sequence[int],
) -> Roofline:
  """The estimate for one chip.

  Args:
    flops, bytes_moved: of one chip in a step; bytes to and from its main memory.
    exchanges: of a step.
    chip: what a chip can do at most.
    dtype: of the computation.
    torus: chips along each axis; one slice.
  """
  seconds = [(each, _exchange_seconds(each, chip, torus)) for each in exchanges]
  return Roofline(
    compute=flops / chip.peak(dtype),
    memory=bytes_moved / chip.bandwidth,
    overlapped=math.fsum(t for each, t in seconds if each.overlapped),
    exposed=math.fsum(t for each, t in seconds if not each.overlapped),
  )


def _exchange_seconds(exchange: Collective, chip: Chip, torus: Sequence[int]) -> float:
  """Of an exchange among all chips, on all links at once; one that fewer chips take part in is no slower.

  Slices, or nodes, of a single chip are taken for neighbours.
  """
  torus = torus if math.prod(torus) > 1 else (2,)
  # Two neighbours along each axis; only one where the axis has but two chips.
  links = sum(min(side - 1, 2) for side in torus)
  hops = sum(side // 2 for side in torus)
  return max(_SENT[exchange.kind] * exchange.bytes / (chip.link * links), hops * chip.hop)
