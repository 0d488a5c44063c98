"""Every test sees eight simulated CPU devices; the flags must be set before JAX is imported."""

import os
import tempfile
from importlib.metadata import version
from pathlib import Path

# Tests compile much and compute little.
_FLAGS = '--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0'
# A third of the time to compile; other releases may not know the flag, and die of it.
if version('jaxlib').startswith('0.10.'):
  _FLAGS += ' --xla_cpu_use_fusion_emitters=false'
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {_FLAGS}'.strip()
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Tests in other processes, and the next run, find what one has compiled.
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(Path(tempfile.gettempdir()) / 'jaxface_test_cache'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.5')
# Goldens were computed in true float32; accelerators multiply in less by default.
os.environ['JAX_DEFAULT_MATMUL_PRECISION'] = 'highest'
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


_LONG = (
  'makeup_train_test.py',
  'diffusion_train_test.py',
  'diffusion_test.py',
  'train_test.py',
  'parallel_test.py',
  'processes_test.py',
  'cli_test.py',
  'vae_test.py',
  'parsing_test.py',
  'ipmnet_test.py',
  'beautygan_test.py',
  'bisenet_test.py',
  'autoencoder_test.py',
  'scadm_test.py',
  'sdm_test.py',
  'pipeline_test.py',
  'synthesize_test.py',
  'prepare_test.py',
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  """Long files first, so that no worker is left alone with one at the end."""
  items.sort(key=lambda item: _LONG.index(item.path.name) if item.path.name in _LONG else len(_LONG))
