"""What one device can do at most, from its maker's data sheet."""

import dataclasses
import math
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Chip:
  """Peaks of one chip: of a TPU chip with all its cores, or of a GPU.

  Attributes:
    flops: dense matrix peak in FLOP/s, by the numbers that are multiplied.
    memory: bytes; 0 where it is not listed.
    bandwidth: of that memory, bytes/s.
    link: bytes/s one way over one link to a neighbour; of a GPU, over all its links to the others of its node.
    hop: seconds that one hop over a link takes about, however little is sent; of a GPU, an exchange within a node.
    clock: of a TPU, cycles a second.
  """

  flops: Mapping[str, float]
  memory: float = 0.0
  bandwidth: float = 0.0
  link: float = 0.0
  hop: float = 0.0
  clock: float = 0.0

  def peak(self, dtype: str) -> float:
    """FLOP/s in `dtype`; nan where it is not listed."""
    return self.flops.get(dtype, math.nan)


def _tpu(tflops: float, memory_gib: float, bandwidth: float, link: float, clock: float) -> Chip:
  # float32 inputs are multiplied as bfloat16 by default.
  return Chip({'bfloat16': tflops * 1e12, 'float32': tflops * 1e12}, memory_gib * 2**30, bandwidth, link, 1e-6, clock)


def _gpu(bfloat16: float, tf32: float, memory: float, bandwidth: float, link: float) -> Chip:
  return Chip({'bfloat16': bfloat16 * 1e12, 'float32': tf32 * 1e12}, memory, bandwidth, link, 1e-5)


# By JAX's device_kind.
CHIPS = {
  'TPU v4': _tpu(275, 32, 1228e9, 45e9, 1.05e9),
  'TPU v5 lite': _tpu(197, 16, 819e9, 45e9, 1.5e9),
  'TPU v5': _tpu(459, 95, 2765e9, 90e9, 1.75e9),
  'TPU v6 lite': _tpu(918, 32, 1640e9, 90e9, 1.75e9),
  'NVIDIA A100-SXM4-40GB': _gpu(312, 156, 40e9, 1555e9, 300e9),
  'NVIDIA A100-SXM4-80GB': _gpu(312, 156, 80e9, 2039e9, 300e9),
  'NVIDIA H100 80GB HBM3': _gpu(989, 495, 80e9, 3350e9, 450e9),
  'NVIDIA H200': _gpu(989, 495, 141e9, 4800e9, 450e9),
}
