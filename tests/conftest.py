"""Every test sees eight simulated CPU devices; the flags must be set before JAX is imported."""

import functools
import gc
import os
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

# Tests compile much and compute little.
_FLAGS = '--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0'
# A third of the time to compile; other releases may not know the flags, and die of them.
if version('jaxlib').startswith('0.10.'):
  _FLAGS += ' --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1'
# Tracing makes many objects and few cycles of them: to look for these takes a tenth of the time.
gc.set_threshold(100_000, 50, 50)
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {_FLAGS}'.strip()
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Tests in other processes, and the next run, find what one has compiled.
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(Path(tempfile.gettempdir()) / 'jaxface_test_cache'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.5')
# Goldens were computed in true float32; accelerators multiply in less by default.
os.environ['JAX_DEFAULT_MATMUL_PRECISION'] = 'highest'
# Where in the sources an operation stands is a quarter of the time to trace and lower.
os.environ.setdefault('JAX_TRACEBACK_IN_LOCATIONS_LIMIT', '0')
os.environ['JAX_NUMPY_RANK_PROMOTION'] = 'raise'

import pytest


@pytest.fixture(scope='session')
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """Sixty synthetic faces of 16 pixels (48 train, 6 validation, 6 test), the dataset of the 'smoke' configurations."""
  from jaxface.prepare import prepare

  folder = tmp_path_factory.mktemp('data')
  prepare('synthetic_faces', data_dir=folder, size=16, count=60, seed=0)
  return folder


@pytest.fixture(scope='session')
def makeup_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """Sixty makeup triples of 16 pixels, the dataset of the makeup systems' 'smoke' configurations."""
  from jaxface.prepare import prepare

  folder = tmp_path_factory.mktemp('makeup')
  prepare('synthetic_faces', data_dir=folder, size=16, count=60, seed=0, makeup_pairs=True)
  return folder


def _share(devices: int | None) -> Iterator[None]:
  from jaxface import runs, train
  from tests.smoke import shared_engine

  with pytest.MonkeyPatch.context() as patch:
    for module in (runs, train):
      patch.setattr(module, 'engine_for', functools.partial(shared_engine, devices=devices))
    yield


@pytest.fixture(scope='module')
def shared_engines() -> Iterator[None]:
  """Within the module, runs of like configurations and evaluations of them compile their programs once."""
  yield from _share(None)


@pytest.fixture(scope='module')
def one_device_engines() -> Iterator[None]:
  """`shared_engines` that run on one device: eight of them take the one CPU eight times as long."""
  yield from _share(1)


_LONG = (
  'makeup_train_test.py',
  'diffusion_train_test.py',
  'vae_test.py',
  'processes_test.py',
  'scadm_test.py',
  'autoencoder_test.py',
  'parallel_test.py',
  'train_test.py',
  'parsing_test.py',
  'sdm_test.py',
  'diffusion_test.py',
  'ipmnet_test.py',
  'pipeline_test.py',
  'cli_test.py',
  'command_test.py',
  'beautygan_test.py',
  'ssim_test.py',
  'lpips_test.py',
  'synthetic_faces_test.py',
  'bisenet_test.py',
  'launch_test.py',
  'conv_test.py',
  'prepare_test.py',
)


def pytest_configure(config: pytest.Config) -> None:
  """Leaves the files in our order: pytest-xdist would begin with those of the most tests."""
  config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  """Long files first, so that no worker is left alone with one at the end."""
  items.sort(key=lambda item: _LONG.index(item.path.name) if item.path.name in _LONG else len(_LONG))
