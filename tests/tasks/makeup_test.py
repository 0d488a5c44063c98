"""What a makeup system is measured by, region by region, and what each side of a pair is given."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import labels
from jaxface.augment import Framing
from jaxface.errors import UserError
from jaxface.ssim import ssim
from jaxface.tasks import make_task
from jaxface.tasks.ipmnet import make_recipes
from jaxface.tasks.makeup import MakeupTask
from jaxface.texture import RECIPES, texture
from tests.smoke import experiment

_CLASS = {name: labels.index(name) for name in labels.CLASSES}


class _Brighter(MakeupTask):
  """Adds a tenth to red at level 1, everywhere, and leaves the picture as it is at level 0."""

  def code(self, state, reference):
    return np.ones(len(reference.image), np.float32)

  def wear(self, state, target, code, level=None):
    level = code if level is None else level
    return target.image + level[:, None, None, None] * np.float32([[[[0.2, 0, 0]]]])


class _EyeDrops(_Brighter):
  """Makes left eyes and the skin brighter."""

  def wear(self, state, target, code, level=None):
    changed = np.isin(target.label, [_CLASS['l_eye'], _CLASS['skin']])[..., None]
    return jnp.where(changed, target.image + 0.2, target.image)


@pytest.fixture(scope='module')
def measured():
  """Two faces, of which the second has neither lips nor a right eye, their true results, and what is measured."""
  label = np.full((2, 32, 32), _CLASS['background'], np.uint8)
  label[:, 4:30, 4:28] = _CLASS['skin']
  label[:, 10:12, 8:11] = _CLASS['l_eye']
  label[0, 10:12, 20:23] = _CLASS['r_eye']
  label[0, 22:25, 12:20] = _CLASS['u_lip']
  rng = np.random.default_rng(0)
  target = rng.uniform(0.1, 0.8, (2, 32, 32, 3)).astype(np.float32)
  truth = np.clip(target + rng.uniform(-0.1, 0.1, target.shape), 0, 1).astype(np.float32)
  batch = {'image': target, 'label': label, 'reference_image': target, 'reference_label': label, 'makeup_image': truth}
  task = _Brighter(framing=Framing(32), image_size=32)
  rows = jax.jit(lambda: task.eval_step(None, batch, None))()
  summary = task.summary({name: np.asarray(values, np.float64).mean(0) for name, values in rows.items()})
  compared = jax.jit(lambda: task.compared(None, batch)._asdict())()
  return label, target, truth, rows, summary, compared


def _eyes(label):
  """Skin in the boxes around the eyes, a pixel larger than these, as 32 pixels have it."""
  mask = np.zeros_like(label, bool)
  mask[:, 9:13, 7:12] = True
  mask[0, 9:13, 19:24] = True
  return mask & (label == _CLASS['skin'])


def test_regions_are_measured_over_their_own_pixels_and_the_faces_that_have_them(measured):
  label, target, truth, rows, summary, _ = measured
  made = target + np.float32([0.1, 0, 0])
  masks = {'lips': label == _CLASS['u_lip'], 'skin': label == _CLASS['skin'], 'eyes': _eyes(label)}
  for area, mask in masks.items():
    having = mask.any((1, 2))
    np.testing.assert_array_equal(rows[f'transfer, {area}/has'], having)
    shown = [(truth[i][mask[i]], made[i][mask[i]]) for i in np.flatnonzero(having)]
    l1 = np.mean([np.abs(a - b).mean() for a, b in shown])
    psnr = np.mean([-10 * np.log10(np.square(a - b).mean()) for a, b in shown])
    np.testing.assert_allclose(summary[f'transfer, {area}/l1'], l1, rtol=1e-4, err_msg=area)
    np.testing.assert_allclose(summary[f'transfer, {area}/psnr'], psnr, rtol=1e-4, err_msg=area)
    weights = mask[..., None].astype(np.float32)
    of_windows = np.asarray(ssim(truth, made, filter_size=11, mask=weights))[having].mean()
    np.testing.assert_allclose(summary[f'transfer, {area}/ssim'], of_windows, rtol=1e-4, err_msg=area)
    np.testing.assert_allclose(
      summary[f'nothing, {area}/l1'],
      np.mean([np.abs(truth[i] - target[i])[mask[i]].mean() for i in np.flatnonzero(having)]),
      rtol=1e-4,
    )
  assert [bool(rows[f'transfer, {area}/has'].all()) for area in masks] == [False, True, True]


def test_the_background_is_what_is_kept(measured):
  label, target, _, rows, summary, _ = measured
  np.testing.assert_allclose(rows['background/l1'], 0.1 / 3, rtol=1e-4)
  np.testing.assert_allclose(summary['reconstruction/l1'], 0, atol=1e-6)
  # What is changed in an eye, which nobody repaints, is the background's.
  batch = {'image': target, 'label': label, 'reference_image': target, 'reference_label': label}
  found = _EyeDrops(framing=Framing(32), image_size=32).eval_step(None, batch, None)['background/l1']
  kept = ~np.isin(label, [_CLASS['skin'], _CLASS['u_lip']])
  np.testing.assert_allclose(found, 0.1 * (label == _CLASS['l_eye']).sum((1, 2)) / kept.sum((1, 2)), rtol=1e-4)


def test_networks_see_a_region_on_the_true_picture(measured):
  label, target, truth, _, _, compared = measured
  made = np.clip(target + np.float32([0.1, 0, 0]), 0, 1)
  for area, mask in {'lips': label == _CLASS['u_lip'], 'skin': label == _CLASS['skin'], 'eyes': _eyes(label)}.items():
    true, shown = compared['pairs'][f'transfer, {area}']
    np.testing.assert_allclose(true, truth, atol=1e-6)
    np.testing.assert_allclose(shown, np.where(mask[..., None], made, truth), atol=1e-6, err_msg=area)
    np.testing.assert_array_equal(compared['has'][f'transfer, {area}'], mask.any((1, 2)))


@pytest.fixture(scope='module')
def ipmnet():
  return make_task(experiment('ipmnet', 'code'))


def test_each_side_has_the_texture_of_its_own_recipe(ipmnet):
  assert make_recipes('stored', 321) == (RECIPES['non_makeup'], RECIPES['makeup'])
  assert make_recipes('stored', 96) == tuple(RECIPES[name].scaled(96) for name in ('non_makeup', 'makeup'))
  assert ipmnet.textures == make_recipes('stored', 32)
  image = np.random.default_rng(0).uniform(0, 1, (1, 32, 32, 3)).astype(np.float32)
  label = np.full((1, 32, 32), _CLASS['skin'], np.uint8)
  target, reference = (ipmnet.faces(image, label, made_up=made_up).texture for made_up in (False, True))
  for found, recipe in ((target, ipmnet.textures[0]), (reference, ipmnet.textures[1])):
    np.testing.assert_allclose(found, texture(image * 255, label, recipe), atol=1e-6)
  assert target.mean() > 1.2 * reference.mean()


def test_textures_are_of_the_blue_that_is_given(ipmnet):
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.integers(0, 256, (1, 32, 32, *shape), np.uint8)
  label = np.full((1, 32, 32), _CLASS['skin'], np.uint8)
  batch = {'image': draw(3), 'label': label, 'blue': draw(), 'row': np.arange(1)}
  batch |= {'reference_image': draw(3), 'reference_label': label, 'reference_blue': draw()}
  assert set(ipmnet.batch_fields) < set(batch)
  task = dataclasses.replace(ipmnet, framing=Framing(32))
  references, targets = task.sides(batch, jax.random.key(0))
  for faces, blue, recipe in (
    (targets, batch['blue'], task.textures[0]),
    (references, batch['reference_blue'], task.textures[1]),
  ):
    np.testing.assert_allclose(faces.texture, texture(blue[..., None], label, recipe), atol=1e-6)


def test_in_use_a_texture_has_its_mean_weight(ipmnet, monkeypatch):
  seen = []
  monkeypatch.setattr(type(ipmnet), '_input', lambda self, faces, weight: seen.append(weight) or faces.image)
  monkeypatch.setattr(type(ipmnet), '_generate', lambda self, params, inputs, style: inputs)
  task = dataclasses.replace(ipmnet, texture_range=(0.6, 1.0))
  faces = task.faces(np.zeros((2, 32, 32, 3), np.float32), np.zeros((2, 32, 32), np.uint8), made_up=False)
  task.wear(type('State', (), {'params': {'generator': None}}), faces, jnp.zeros((2, 8)))
  np.testing.assert_allclose(seen[0], [0.8, 0.8], rtol=1e-6)


def test_the_two_sides_are_framed_each_for_itself():
  task = _Brighter(framing=Framing(32, random_crop=True), image_size=64)
  places = np.arange(64, dtype=np.float32) / 64
  image = np.broadcast_to(places[:, None, None], (40, 64, 64, 3))
  label = np.zeros((40, 64, 64), np.uint8)
  batch = {'image': image, 'label': label, 'reference_image': image, 'reference_label': label}
  batch |= {'row': np.arange(40, dtype=np.int32)}
  sides = jax.jit(lambda: task.sides(batch, jax.random.key(0)))()
  a, b = (np.asarray(side.image)[:, 0, 0, 0] for side in sides)
  assert np.abs(np.corrcoef(a, b)[0, 1]) < 0.5
  assert len(np.unique(a)) > 15


def test_beautygan_has_the_regions_that_its_configuration_says():
  for neck in (True, False):
    config = experiment('beautygan', 'code')
    config.loss.neck = neck
    assert make_task(config).neck is neck
  # Ten pixels of 256, as the public code.
  assert round(make_task(config).eye_margin * 256) == 10


def test_too_small_a_crop_is_refused():
  config = experiment('ipmnet', 'code')
  config.augment.crop_size = 30
  with pytest.raises(UserError, match='crop_size=30 must be a multiple of 4'):
    make_task(config)
