"""LPIPS, FID, KID, diversity and identity of a task's pictures, with small networks in the places of the real ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxface import input_pipeline, perceptual, weights
from jaxface.errors import UserError
from jaxface.metrics import fid, kid
from jaxface.parallel import JitEngine, make_mesh
from jaxface.perceptual import Perceptual
from jaxface.tasks.task import Compared


class Colours(nn.Module):
  """In the place of Inception: the mean colour."""

  def __call__(self, image):
    return image.mean((1, 2))


class Difference(nn.Module):
  """In the place of LPIPS."""

  @nn.compact
  def __call__(self, a, b):
    return self.param('scale', nn.initializers.ones, ()) * jnp.square(a - b).mean((1, 2, 3))


class Darker:
  """A task that makes pictures darker, by half and entirely."""

  frozen = None

  def compared(self, state, batch):
    image = batch['image'].astype(jnp.float32) / 255
    made = {'half': state * image, 'black': 0 * image}
    pairs = {name: (image, picture) for name, picture in made.items()}
    return Compared(pairs, real=image, sets=made, persons={'half': (image, image)})


@pytest.fixture(autouse=True)
def networks(monkeypatch):
  modules = {
    'inception': (Colours(), {}),
    'resnet50_face': (Colours(), {}),
    'lpips-alex': (Difference(), {'params': {'scale': np.float32(2)}}),
  }
  monkeypatch.setattr(weights, 'load', lambda name, _: weights.Network(*modules[name], {'made_up.pth': 'abcdef0123'}))


@pytest.fixture
def dataset(data_dir):
  return input_pipeline.open_dataset(
    'synthetic_faces/faces_16', 'train', ('image',), image_size=16, data_dir=str(data_dir)
  )


def test_numbers_are_those_of_all_pictures_at_once(dataset):
  engine = JitEngine(Darker(), seed=0, mesh=make_mesh(1, jax.devices()))
  # 48 pictures: a full batch of 40, and one of 8 that is filled up.
  metrics = ['lpips-alex', 'fid', 'kid', 'diversity-alex', 'identity']
  measure = Perceptual(metrics, allow_few=True).measure
  measured = measure(engine, jnp.float32(0.5), dataset, batch_size=40)
  images = input_pipeline.load_whole(dataset)['image'] / 255
  features = {k: (k * images).mean((1, 2)) for k in (1, 0.5, 0)}
  statistics = {k: fid.FeatureStatistics.of(of) for k, of in features.items()}
  expected = {
    'half/lpips-alex': 2 * np.square(images / 2).mean(),
    'black/lpips-alex': 2 * np.square(images).mean(),
    'half/fid': fid.frechet_distance(statistics[1], statistics[0.5]),
    'black/fid': fid.frechet_distance(statistics[1], statistics[0]),
    'half/kid': kid.kid(features[1], features[0.5]).mean,
    'black/kid': kid.kid(features[1], features[0]).mean,
    'half/diversity-alex': 2 * np.square(np.diff(images / 2, axis=0)).mean(),
    'black/diversity-alex': 0.0,
    'half/identity': 1.0,
  }
  assert measured.keys() == expected.keys()
  for name, value in expected.items():
    assert measured[name] == pytest.approx(value, rel=1e-4, abs=1e-9), name


def test_kid_is_there_for_few_pictures(dataset):
  engine = JitEngine(Darker(), seed=0, mesh=make_mesh(1, jax.devices()))
  measured = Perceptual(['kid']).measure(engine, jnp.float32(0.5), dataset, batch_size=8)
  colours = input_pipeline.load_whole(dataset)['image'].mean((1, 2)) / 255
  assert measured.keys() == {'half/kid', 'black/kid'}
  assert measured['half/kid'] == pytest.approx(kid.kid(colours, colours / 2).mean, rel=1e-4)
  with pytest.raises(UserError, match='FID of 48 pictures is mostly noise .*take kid, or say --allow-few'):
    Perceptual(['fid', 'kid']).measure(engine, jnp.float32(0.5), dataset, batch_size=8)


@pytest.mark.parametrize('batch_size', [8, 40])
def test_diversity_is_of_one_picture_after_the_other_whatever_the_batch(dataset, batch_size):
  engine = JitEngine(Darker(), seed=0, mesh=make_mesh(1, jax.devices()))
  measured = Perceptual(['diversity-alex']).measure(engine, jnp.float32(1), dataset, batch_size=batch_size)
  images = input_pipeline.load_whole(dataset)['image'] / 255
  assert measured['half/diversity-alex'] == pytest.approx(2 * np.square(np.diff(images, axis=0)).mean(), rel=1e-4)


class Mixed(JitEngine):
  """Puts rows on the devices as two processes do: those of the one, then those of the other."""

  def put(self, batch):
    return super().put({name: np.concatenate([values[::2], values[1::2]]) for name, values in batch.items()})


def test_diversity_goes_by_the_order_of_the_dataset(dataset):
  engines = [kind(Darker(), seed=0, mesh=make_mesh(1, jax.devices())) for kind in (JitEngine, Mixed)]
  measure = Perceptual(['diversity-alex']).measure
  one, two = (measure(engine, jnp.float32(1), dataset, batch_size=8) for engine in engines)
  assert two == pytest.approx(one, rel=1e-5)


class Partial(Darker):
  """Pairs that are there in the first half of a batch only."""

  def compared(self, state, batch):
    compared = super().compared(state, batch)
    rows = len(batch['image'])
    return compared._replace(has={'black': (jnp.arange(rows) < rows // 2).astype(jnp.float32)})


def test_rows_without_what_is_compared_do_not_count(dataset):
  engine = JitEngine(Partial(), seed=0, mesh=make_mesh(1, jax.devices()))
  measured = Perceptual(['lpips-alex', 'l1']).measure(engine, jnp.float32(0.5), dataset, batch_size=8)
  images = input_pipeline.load_whole(dataset)['image'] / 255
  there = images[np.arange(48) % 8 < 4]
  assert measured['black/lpips-alex'] == pytest.approx(2 * np.square(there).mean(), rel=1e-4)
  assert measured['black/l1'] == pytest.approx(there.mean(), rel=1e-4)
  assert measured['half/l1'] == pytest.approx(images.mean() / 2, rel=1e-4)


def test_seconds_are_those_of_every_made_picture(dataset, monkeypatch):
  engine = JitEngine(Darker(), seed=0, mesh=make_mesh(1, jax.devices()))
  monkeypatch.setattr(perceptual, 'time_repeatedly', lambda call, seconds: (call() and 8.0, 1))
  measured = Perceptual(['seconds']).measure(engine, jnp.float32(0.5), dataset, batch_size=8)
  assert measured == {'half/seconds': 0.5, 'black/seconds': 0.5}  # 8 seconds for 8 pictures in two ways.


def test_another_draw_of_references_compiles_nothing_anew(dataset):
  traced = []

  class Counted(Darker):
    def compared(self, state, batch):
      traced.append(state)
      return super().compared(state, batch)

  engine, perceptual = JitEngine(Counted(), seed=0, mesh=make_mesh(1, jax.devices())), Perceptual(['ssim'])
  first, second = (perceptual.measure(engine, jnp.float32(0.5), dataset, batch_size=8) for _ in range(2))
  assert first == second
  assert len(traced) == 1


def test_few_pictures_and_unknown_metrics_are_refused(dataset):
  engine = JitEngine(Darker(), seed=0, mesh=make_mesh(1, jax.devices()))
  with pytest.raises(UserError, match='FID of 48 pictures'):
    Perceptual(['fid']).measure(engine, jnp.float32(0.5), dataset, batch_size=8)
  with pytest.raises(UserError, match="unknown metric 'beauty'; evaluation can add lpips-alex"):
    Perceptual(['beauty'])
  with pytest.raises(UserError, match='miou needs a trained face parser: --parser WORKDIR'):
    Perceptual(['miou'])


class Painted:
  """A task that paints label maps in grey, of which those of 'half' are right on the left side only."""

  frozen = None

  def compared(self, state, batch):
    label = batch['label'].astype(jnp.int32)
    grey = jnp.repeat(label[..., None] * 10 / 255, 3, -1)
    half = grey.at[:, :, label.shape[2] // 2 :].set(state)
    pairs = {'right': (grey, grey)}
    return Compared(pairs, asked={'right': (label, grey), 'half': (label, half)}, repeats={'half': (grey, half)})


class Levels:
  """In the place of a parser: tells the class by the grey level."""

  identity = 'grey levels'

  def __call__(self, images):
    return [image[..., 0] // 10 for image in images]


def test_what_a_parser_finds_is_compared_with_what_was_asked_for(data_dir, monkeypatch):
  monkeypatch.setattr('jaxface.perceptual.load_parser', lambda workdir: Levels())
  fields = {'image_size': 16, 'data_dir': str(data_dir)}
  dataset = input_pipeline.open_dataset('synthetic_faces/faces_16', 'train', ('label',), **fields)
  engine = JitEngine(Painted(), seed=0, mesh=make_mesh(1, jax.devices()))
  perceptual = Perceptual(['miou', 'psnr', 'diversity-alex'], parser='runs/parser')
  assert perceptual.protocol['miou'].endswith('; grey levels')
  measured = perceptual.measure(engine, jnp.float32(0), dataset, batch_size=40)
  label = input_pipeline.load_whole(dataset)['label']
  found = label.copy()
  found[:, :, 8:] = 0
  iou = [((label == c) & (found == c)).sum() / ((label == c) | (found == c)).sum() for c in np.unique(label)]
  difference = 2 * np.square((label[:, :, 8:] * (10 / 255)).astype(np.float64)).sum() / label.size
  expected = {'right/psnr': 100.0, 'half/diversity-alex': difference, 'right/miou': 1.0, 'right/accuracy': 1.0}
  expected |= {'half/miou': np.mean(iou), 'half/accuracy': (label == found).mean()}
  assert measured == pytest.approx(expected, rel=1e-5)


def test_the_protocol_names_the_files():
  assert Perceptual(['lpips-alex']).protocol == {'lpips-alex': 'v0.1; made_up.pth sha256:abcdef01'}


class Bright(Darker):
  """Makes pictures that leave the range at both its ends."""

  def compared(self, state, batch):
    image = batch['image'].astype(jnp.float32) / 255
    made = 3 * image[..., ::-1] - state
    return Compared({'bright': (image, made)}, real=image, sets={'bright': made}, persons={'bright': (image, made)})


def test_networks_see_pictures_in_the_range_they_were_trained_on(dataset, monkeypatch):
  # VIF is not symmetric, but wants larger pictures: what stands in for it tells which is the true one.
  monkeypatch.setitem(perceptual._BY_EYE, 'vif', lambda true, made: (made - 2 * true).mean((1, 2, 3)))
  engine = JitEngine(Bright(), seed=0, mesh=make_mesh(1, jax.devices()))
  metrics = ['fid', 'identity', 'vif']
  measured = Perceptual(metrics, allow_few=True).measure(engine, jnp.float32(0.75), dataset, batch_size=40)
  images = input_pipeline.load_whole(dataset)['image'] / 255
  made = 3 * images[..., ::-1] - 0.75
  real, clipped = (fid.FeatureStatistics.of(x.mean((1, 2))) for x in (images, np.clip(made, 0, 1)))
  assert measured['bright/fid'] == pytest.approx(fid.frechet_distance(real, clipped), rel=1e-3)
  # The face network takes [-1, 1].
  a, b = (2 * x.mean((1, 2)) - 1 for x in (images, made))
  cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
  assert measured['bright/identity'] == pytest.approx(cosine.mean(), rel=1e-3)
  assert measured['bright/vif'] == pytest.approx((made - 2 * images).mean(), rel=1e-3)


class Eyes:
  """In the place of a parser: notes the grey levels of the right half, and finds nothing."""

  identity = 'eyes'

  def __init__(self):
    self.seen = set()

  def __call__(self, images):
    self.seen.update(*(np.unique(image[:, 8:]).tolist() for image in images))
    return [0 * image[..., 0] for image in images]


class Half(Painted):
  """Of what `Painted` makes only the half."""

  def compared(self, state, batch):
    found = super().compared(state, batch)
    return found._replace(asked={'half': found.asked['half']})


@pytest.mark.parametrize(('grey', 'level'), [(9.7, 10), (-40.0, 0), (400.0, 255)])
def test_the_parser_sees_the_nearest_of_256_levels(data_dir, monkeypatch, grey, level):
  eyes = Eyes()
  monkeypatch.setattr('jaxface.perceptual.load_parser', lambda workdir: eyes)
  fields = {'image_size': 16, 'data_dir': str(data_dir)}
  dataset = input_pipeline.open_dataset('synthetic_faces/faces_16', 'train', ('label',), **fields)
  engine = JitEngine(Half(), seed=0, mesh=make_mesh(1, jax.devices()))
  Perceptual(['miou'], parser='runs/parser').measure(engine, jnp.float32(grey / 255), dataset, batch_size=48)
  assert eyes.seen == {level}
