"""The experiments in smoke size, for tests to run and change."""

from pathlib import Path

from ml_collections import ConfigDict

from jaxface.cli import load_config

REPOSITORY = Path(__file__).parent.parent
EXPERIMENT = str(REPOSITORY / 'experiments' / 'vae.py')


def smoke_config(variant: str, data_dir: Path | None = None) -> ConfigDict:
  """The smoke configuration of `variant`, on the datasets in `data_dir`, read without worker processes."""
  config = load_config(f'{EXPERIMENT}:{variant},smoke', [])
  config.data.data_dir = '' if data_dir is None else str(data_dir)
  config.data.workers = 0
  return config
