"""What is done with a trained VAE, by a network of which one sees what it does: every number in its place."""

import types
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxface import figures, vae_pictures
from jaxface.models.vae import Prediction
from jaxface.pictures import read_picture, write_picture

SIDE = 4
RED, BLUE = np.array([200, 40, 0]), np.array([0, 40, 100])


@pytest.fixture
def opened(monkeypatch):
  """Latents are mean colours, decoded pictures white, masks the upper half; the checkpoints that were opened."""
  found = []

  def load(workdir, checkpoint):
    found.append(checkpoint)
    return types.SimpleNamespace(config=ConfigDict({'model': {'image_size': SIDE}}))

  def predict(self, images):
    mask = np.zeros_like(images[..., :1])
    mask[:, : SIDE // 2] = 1
    decoded = np.ones_like(images)
    return Prediction(decoded * mask + images * (1 - mask), decoded, mask, None, images.mean((1, 2)), None)

  monkeypatch.setattr(vae_pictures, '_load_vae', load)
  monkeypatch.setattr(vae_pictures._Vae, 'predict', predict)
  monkeypatch.setattr(vae_pictures._Vae, 'decode', lambda _, z: z[:, None, None].repeat(SIDE, 1).repeat(SIDE, 2))
  return found


@pytest.fixture
def photos(tmp_path) -> list[Path]:
  paths = [tmp_path / 'red.png', tmp_path / 'blue.png']
  for path, colour in zip(paths, (RED, BLUE), strict=True):
    write_picture(path, np.full((8, 6, 3), colour, np.uint8))
  return paths


def test_a_walk_goes_from_the_first_face_to_the_second(opened, photos, tmp_path):
  vae_pictures.interpolate('run', photos, tmp_path / 'walk.png', steps=3, checkpoint='7')
  cells = read_picture(tmp_path / 'walk.png')[50, 50::98]
  np.testing.assert_allclose(cells, [RED, RED, (RED + BLUE) / 2, BLUE, BLUE], atol=1)
  assert opened == ['7']


def test_a_reconstruction_has_the_pictures_own_background_and_size(opened, photos, tmp_path):
  (first, _) = vae_pictures.reconstruct('run', photos, tmp_path / 'out', checkpoint='7')
  made = read_picture(first)
  assert made.shape == (8, 6, 3)
  np.testing.assert_allclose(made[0, 0], 255)
  np.testing.assert_allclose(made[-1, 0], RED, atol=1)
  assert opened == ['7']


def test_a_grid_names_what_it_shows(opened, photos, tmp_path, monkeypatch):
  shown = []
  monkeypatch.setattr(
    figures, 'titled_columns', lambda columns, **options: shown.append(columns) or np.zeros((8, 8, 3))
  )
  vae_pictures.reconstruct('run', photos, tmp_path / 'grid.png')
  top, bottom = ({name: pictures[0, row, 0].tolist() for name, pictures in shown[0].items()} for row in (0, -1))
  red = pytest.approx(RED / 255)
  assert top == {'input': red, 'decoded': [1] * 3, 'predicted mask': [1], 'on own background': [1] * 3}
  assert bottom == {'input': red, 'decoded': [1] * 3, 'predicted mask': [0], 'on own background': red}


def test_the_fitted_prior_has_the_mean_and_the_spread_of_the_encoded_pictures(opened, monkeypatch):
  colours = np.random.default_rng(0).integers(0, 256, (18, 1, 1, 3), np.uint8).repeat(SIDE, 1).repeat(SIDE, 2)
  batches = [
    {'image': colours[:16], 'weight': np.ones(16)},
    {'image': np.concatenate([colours[16:], 255 + 0 * colours[:14]]), 'weight': np.arange(16) < 2},
  ]
  data = ConfigDict({'data': {'train_split': 'train'}, 'model': {'image_size': SIDE}})
  vae = vae_pictures._Vae(types.SimpleNamespace(config=data, engine=None))
  monkeypatch.setattr(vae_pictures, 'open_split', lambda *_: range(18))
  monkeypatch.setattr(vae_pictures.input_pipeline, 'eval_batches', lambda *_, **__: iter(batches))
  drawn = vae_pictures._fitted_prior(vae, 20_000, np.random.default_rng(1))
  means = colours[:, 0, 0] / 255
  np.testing.assert_allclose(drawn.mean(0), means.mean(0), atol=0.01)
  np.testing.assert_allclose(np.cov(drawn.T), np.cov(means.T, bias=True), atol=0.005)
