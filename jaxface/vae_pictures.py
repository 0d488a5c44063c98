"""What a user does with a trained face-mask VAE: reconstruct photos, draw new faces, walk from face to face."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import jax
import numpy as np

from jaxface import figures, input_pipeline, photos, pictures
from jaxface.errors import UserError
from jaxface.folders import check_writable
from jaxface.models.vae import Prediction
from jaxface.pictures import read_picture
from jaxface.runs import Run, load_run, open_split
from jaxface.state import PyTree

_BATCH = 16
_FITTED_EXAMPLES = 1024


def _load_vae(workdir: Path, checkpoint: str) -> Run:
  run = load_run(workdir, checkpoint)
  if run.config.task != 'vae':
    raise UserError(f"{workdir} is a run of task {run.config.task!r}; this command is for task 'vae'")
  return run


def _in_batches(function: Callable[[np.ndarray], PyTree], rows: np.ndarray) -> PyTree:
  """Applies a jitted function to `rows` in batches of one shape, and returns what is real, joined, as numpy."""
  outputs = []
  for start in range(0, len(rows), _BATCH):
    piece = rows[start : start + _BATCH]
    outputs.append(function(np.concatenate([piece, np.repeat(piece[-1:], _BATCH - len(piece), axis=0)])))
  return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(rows)], *outputs)


@dataclasses.dataclass(frozen=True)
class _Vae:
  """A run's network as functions of numpy arrays."""

  run: Run

  @property
  def size(self) -> int:
    return self.run.config.model.image_size

  def predict(self, images: np.ndarray) -> Prediction:
    """[N, S, S, 3] in [0, 1] -> Prediction."""
    return _in_batches(functools.partial(jax.jit(self.run.engine.task.predict), self.run.state), images)

  def decode(self, z: np.ndarray) -> np.ndarray:
    """[N, D] -> [N, S, S, 3] in [0, 1]."""
    return _in_batches(functools.partial(jax.jit(self.run.engine.task.decode), self.run.state), z)


def _read(paths: Sequence[Path], size: int) -> np.ndarray:
  """Pictures of any size, averaged down to [N, size, size, 3] in [0, 1]; as in training, squashed to a square."""
  decode = input_pipeline.Decode(('image',), size, 'area')
  return np.stack([decode.map({'image': read_picture(path)})['image'] for path in paths]) / np.float32(255)


def reconstruct(workdir: Path, images: Sequence[Path], out: Path, *, checkpoint: str = 'best') -> list[Path]:
  """Reconstructs pictures (files or folders): a grid if `out` is a .png or .jpg, else a file a picture in folder `out`.

  Each picture once, in the order named, folders in natural order. A file holds the reconstruction on the picture's own
  background, at the picture's own size.
  """
  names = photos.find(images, out)
  one_picture = pictures.is_one_picture(out)
  vae = _Vae(_load_vae(workdir, checkpoint))
  written = [out] if one_picture else [out / f'{i:04d}_{name.stem}.png' for i, name in enumerate(names)]
  check_writable(written[0])
  inputs = _read(names, vae.size)
  predicted = vae.predict(inputs)
  if one_picture:
    columns = {'input': inputs, 'decoded': predicted.decoded}
    if predicted.mask is not None:
      columns |= {'predicted mask': predicted.mask, 'on own background': predicted.image}
    figures.save_png(out, figures.titled_columns(columns, max_rows=len(names)))
  else:
    for i, (name, path) in enumerate(zip(names, written, strict=True)):
      original = read_picture(name)
      height, width = original.shape[:2]
      face = cv2.resize(predicted.decoded[i], (width, height), interpolation=cv2.INTER_CUBIC)
      if predicted.mask is not None:
        mask = cv2.resize(predicted.mask[i], (width, height), interpolation=cv2.INTER_LINEAR)[..., None]
        face = face * mask + original / np.float32(255) * (1 - mask)
      figures.save_png(path, face)
  print(f'reconstructed {len(names)} pictures: {out}')
  return written


def _fitted_prior(vae: _Vae, count: int, rng: np.random.Generator) -> np.ndarray:
  """Latents [count, D] from a Gaussian fitted to the posterior means of training pictures."""
  try:
    dataset = open_split(vae.run.config, vae.run.engine, vae.run.config.data.train_split)
  except UserError as error:
    raise UserError(f'the fitted prior needs training pictures; give --prior normal, or mind this: {error}') from error
  limit = -(-min(_FITTED_EXAMPLES, len(dataset)) // _BATCH)
  batches = input_pipeline.eval_batches(dataset, batch_size=_BATCH, limit=limit)
  pictures = np.concatenate([batch['image'][batch['weight'] > 0] for batch in batches]) / np.float32(255)
  means = vae.predict(pictures).mean
  centred = means - means.mean(0)
  # z = mean + X^T w / sqrt(n), w ~ N(0, 1): the fitted covariance, without forming or factoring it.
  weights = rng.standard_normal((count, len(centred))) / np.sqrt(len(centred))
  return (means.mean(0) + weights @ centred).astype(np.float32)


def sample(
  workdir: Path, out: Path, *, count: int = 64, seed: int = 0, prior: str = 'fitted', checkpoint: str = 'best'
) -> None:
  """Draws `count` faces into a sheet `out` (.png or .jpg).

  `prior` 'normal' is N(0, 1). The recipe weighs the KL term so little that the encoded pictures do not fill that prior;
  'fitted' draws from a Gaussian fitted to the encoded training pictures.
  """
  if count < 1:
    raise UserError(f'--count {count}: give at least 1')
  if seed < 0:
    raise UserError(f'--seed {seed}: give at least 0')
  pictures.check_suffix(out)
  vae = _Vae(_load_vae(workdir, checkpoint))
  check_writable(out)
  rng = np.random.default_rng(seed)
  if prior == 'fitted':
    z = _fitted_prior(vae, count, rng)
  else:
    z = rng.standard_normal((count, vae.run.config.model.latent_dim), np.float32)
  figures.save_png(out, figures.square_sheet(vae.decode(z)))
  print(f'drew {count} faces: {out}')


def interpolate(workdir: Path, images: Sequence[Path], out: Path, *, steps: int = 8, checkpoint: str = 'best') -> None:
  """Walks through the latent space from each picture to the next, a row a pair, into a sheet `out` (.png or .jpg).

  Pictures come in the order named, and again where named again, those of a folder in natural order. A row begins and
  ends with the pictures themselves; between them are `steps` decoded points on the straight line between the two
  posterior means.
  """
  if steps < 2:
    raise UserError(f'--steps {steps}: give at least 2, the first face and the last')
  names = photos.find_each(images, out)
  if len(names) < 2:
    raise UserError(f'interpolation needs two pictures or more, and {images[0]} gave {len(names)}')
  pictures.check_suffix(out)
  vae = _Vae(_load_vae(workdir, checkpoint))
  check_writable(out)
  inputs = _read(names, vae.size)
  means = vae.predict(inputs).mean
  t = np.linspace(0, 1, steps, dtype=np.float32)[:, None]
  walks = np.concatenate([(1 - t) * a + t * b for a, b in itertools.pairwise(means)])
  decoded = vae.decode(walks).reshape(len(names) - 1, steps, vae.size, vae.size, 3)
  rows = [[inputs[i], *decoded[i], inputs[i + 1]] for i in range(len(names) - 1)]
  figures.save_png(out, figures.tile(rows))
  print(f'walked between {len(names)} pictures: {out}')
