"""GPUs that need not be there: what XLA has to know of one to compile for it."""

import dataclasses

# Where there is no GPU, no kernel can be tried: the compiler's first choice stands.
COMPILER_OPTIONS = {'xla_gpu_autotune_level': 0, 'xla_gpu_enable_triton_gemm': False}


@dataclasses.dataclass(frozen=True)
class Gpu:
  """A GPU as the compiler sees it, from its maker's data sheet and programming guide.

  Attributes:
    kind: JAX's device_kind, by which `jaxface.chips.CHIPS` knows its peaks.
    capability: compute capability.
    cores: streaming multiprocessors.
    clock: GHz, at most.
    cache: bytes of its second-level cache.
    shared: bytes of shared memory of a multiprocessor; a block may ask for all but 1,024 of them.
  """

  kind: str
  capability: tuple[int, int]
  cores: int
  clock: float
  cache: int
  shared: int


_A100 = {'capability': (8, 0), 'cores': 108, 'clock': 1.41, 'cache': 40 * 2**20, 'shared': 164 * 2**10}
_HOPPER = {'capability': (9, 0), 'cores': 132, 'clock': 1.98, 'cache': 50 * 2**20, 'shared': 228 * 2**10}
GPUS = {
  'a100-40g': Gpu('NVIDIA A100-SXM4-40GB', **_A100),
  'a100': Gpu('NVIDIA A100-SXM4-80GB', **_A100),
  'h100': Gpu('NVIDIA H100 80GB HBM3', **_HOPPER),
  'h200': Gpu('NVIDIA H200', **_HOPPER),
}


def target_config(gpu: Gpu, memory: float, bandwidth: float) -> str:
  """XLA's GpuTargetConfigProto, as text; `memory` in bytes, `bandwidth` of it in bytes/s."""
  major, minor = gpu.capability
  return f"""
    platform_name: "CUDA"
    device_description_str: "{gpu.kind}"
    dnn_version_info {{ major: 9 minor: 10 }}
    runtime_version {{ major: 12 minor: 8 }}
    gpu_device_info {{
      cuda_compute_capability {{ major: {major} minor: {minor} }}
      core_count: {gpu.cores} fpus_per_core: {64 if major == 8 else 128} clock_rate_ghz: {gpu.clock}
      device_memory_size: {memory:.0f} memory_bandwidth: {bandwidth:.0f} l2_cache_size: {gpu.cache}
      shared_memory_per_core: {gpu.shared} shared_memory_per_block_optin: {gpu.shared - 1024}
      shared_memory_per_block: 49152 registers_per_core_limit: 65536 registers_per_block_limit: 65536
      threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
      block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
    }}"""
