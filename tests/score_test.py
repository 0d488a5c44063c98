"""`jaxface score`: numbers are those of the metrics' own functions, and every mistake is told in one line."""

import argparse
import json
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxface import labels, pictures, score, weights
from jaxface.errors import UserError
from jaxface.metrics import fid, kid, pixel
from jaxface.metrics.vif import vif
from jaxface.models.inception import SIDE
from jaxface.picture_sets import PictureSet, Skipped, batches_by_shape, open_pictures, paired
from jaxface.prepare import prepare
from jaxface.ssim import ms_ssim, ssim


class FewFeatures(nn.Module):
  """In the place of Inception: the mean colours of a picture's quarters."""

  def __call__(self, image):
    assert image.shape[1:] == (SIDE, SIDE, 3)
    return jnp.stack([image[:, y::2, x::2].mean((1, 2)) for y in (0, 1) for x in (0, 1)], 1).reshape(len(image), -1)


class Difference(nn.Module):
  """In the place of LPIPS."""

  net = 'alex'

  def __call__(self, a, b):
    return jnp.square(a - b).mean((1, 2, 3))


@pytest.fixture(autouse=True)
def networks(monkeypatch):
  modules = {'inception': FewFeatures(), 'lpips-alex': Difference()}
  monkeypatch.setattr(
    weights, 'load', lambda name, _: weights.Network(modules[name], {}, {'made_up.pth': 'abcdef0123'})
  )


def _write(folder, images):
  for name, image in images.items():
    pictures.write_picture(folder / f'{name}.png', image)
  return folder


@pytest.fixture(scope='module')
def images():
  rng = np.random.default_rng(0)
  real = {f'{i}': cv2.resize(rng.integers(0, 256, (8, 8, 3), np.uint8), (44, 42)) for i in range(11)}
  noise = lambda image: np.clip(image + rng.normal(0, 20, image.shape), 0, 255).astype(np.uint8)
  return real, {name: noise(image) for name, image in real.items()}


@pytest.fixture
def folders(images, tmp_path):
  return tuple(_write(tmp_path / name, side) for name, side in zip(('real', 'fake'), images, strict=True))


def _features(images):
  wide = [cv2.resize(image.astype(np.float32), (SIDE, SIDE)) / 255 for image in images.values()]
  return np.asarray(FewFeatures().apply({}, np.stack(wide)))


def test_numbers_are_those_of_the_metrics(images, folders):
  metrics = ('fid', 'kid', 'ssim', 'ms_ssim', 'vif', 'psnr', 'rmse', 'l1', 'lpips')
  # Two full batches over eight devices, and one of three pictures.
  result = score.score(*folders, metrics=metrics, ssim_window=3, allow_few=True, batch_size=4)
  a, b = (np.stack(list(side.values())) / np.float32(255) for side in images)
  features = [_features(side) for side in images]
  whole = jax.jit(
    lambda a, b: {'ssim': ssim(a, b, filter_size=3), 'ms_ssim': ms_ssim(a, b, filter_size=3), 'vif': vif(a, b)}
  )
  expected = {
    'fid': fid.frechet_distance(*map(fid.FeatureStatistics.of, features)),
    'kid': kid.kid(*features).mean,
    'psnr': pixel.psnr(a, b).mean(),
    'rmse': pixel.rmse(a, b).mean(),
    'l1': pixel.l1(a, b).mean(),
    'lpips': np.square(a - b).mean(),
    **{name: values.mean() for name, values in whole(a, b).items()},
  }
  assert tuple(result.results) == metrics
  for name, value in expected.items():
    np.testing.assert_allclose(result.results[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
  text = str(result)
  for part in ('11 pictures', '299x299 bilinear without antialiasing', 'made_up.pth sha256:abcdef01', 'window 3'):
    assert part in text
  assert json.loads(result.to_json())['results'] == result.results


def test_a_metric_named_twice_counts_once(folders):
  once, twice = (score.score(*folders, metrics=metrics) for metrics in (['psnr'], ['psnr', 'psnr']))
  assert twice.protocol['pairs'] == once.protocol['pairs'] == '11'
  assert twice.results == once.results


def test_large_pictures_reach_inception_without_antialiasing(tmp_path):
  images = {f'{i}': np.random.default_rng(i).integers(0, 256, (600, 640, 3), np.uint8) for i in range(2)}
  found = score._features(weights.load('inception', None), open_pictures(_write(tmp_path, images)), 8, Skipped())
  np.testing.assert_allclose(found, _features(images), rtol=1e-5)


def test_pictures_that_are_made_smaller_first_are_averaged(tmp_path):
  image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
  pictures = open_pictures(_write(tmp_path, {'0': image}))
  np.testing.assert_allclose(score._resized(pictures, 8).read(0), image.reshape(8, 4, 8, 6, 3).mean((1, 3)), atol=0.51)
  np.testing.assert_array_equal(score._resized(pictures, None).read(0), image)


def test_statistics_are_saved_and_serve_as_the_real_side(folders, tmp_path):
  saved = tmp_path / 'real.npz'
  whole = score.score(*folders, allow_few=True, save_statistics=saved)
  again = score.score(saved, folders[1], allow_few=True)
  assert again.results == whole.results
  assert 'statistics of 11 pictures' in str(again)
  assert score.score(saved, saved, allow_few=True).results['fid'] == pytest.approx(0, abs=1e-9)
  with pytest.raises(UserError, match=r'real.npz: statistics serve FID alone; for fid, l1 name the pictures'):
    score.score(saved, folders[1], metrics=('fid', 'l1'))
  with pytest.raises(UserError, match='real.npz: FID of 11 pictures'):
    score.score(saved, saved)
  with pytest.raises(UserError, match='must be an .npz'):
    score.score(*folders, save_statistics=tmp_path / 'real')
  with pytest.raises(UserError, match='real.npz has theirs already'):
    score.score(saved, folders[1], allow_few=True, save_statistics=tmp_path / 'again.npz')


def test_statistics_alone_need_no_network(folders, tmp_path, monkeypatch):
  saved = tmp_path / 'real.npz'
  score.score(*folders, allow_few=True, save_statistics=saved)

  def missing(name, _):
    raise UserError(f'{name} is missing')

  monkeypatch.setattr(weights, 'load', missing)
  result = score.score(saved, saved, allow_few=True)
  assert result.results['fid'] == pytest.approx(0, abs=1e-9)
  assert '(of features as the statistics have them)' in str(result)
  with pytest.raises(UserError, match='inception is missing'):
    score.score(saved, folders[1], allow_few=True)


def test_mixed_sizes_and_bad_files_do_not_stop_the_rest(images, folders):
  real, fake = folders
  (real / '3.png').write_bytes(b'no picture')
  pictures.write_picture(fake / '4.png', images[1]['4'][:, :-1])
  for folder, side in zip(folders, images, strict=True):
    pictures.write_picture(folder / '5.png', side['5'][:20])
  result = score.score(real, fake, metrics=('l1', 'kid'))
  kept = [name for name in images[0] if name not in '345']
  differences = [np.abs(np.subtract(*(side[name] / 255 for side in images))).mean() for name in kept]
  differences.append(np.abs(np.subtract(*(side['5'][:20] / 255 for side in images))).mean())
  assert result.results['l1'] == pytest.approx(np.mean(differences), rel=1e-5)
  assert result.skipped == {'not a picture in a known format': ['3'], 'sizes that differ': ['4']}
  assert '1 sizes that differ: 4' in str(result)
  # Sets need not pair: of the real pictures one is missing, of the others none.
  assert ['10 pictures' in result.protocol['real'], '11 pictures' in result.protocol['fake']] == [True, True]
  resized = score.score(real, fake, metrics=('l1',), resize=16)
  assert resized.protocol['pairs'] == '10'
  assert '16x16' in resized.protocol['pictures']


def test_a_prepared_dataset_is_a_side(data_dir, tmp_path):
  name = 'synthetic_faces/faces_16'
  equal = score.score(f'{name}:test', name, metrics=('l1', 'psnr'), data_dir=data_dir)
  assert equal.results == {'l1': 0, 'psnr': 100}
  assert equal.protocol['pairs'] == '6'
  agreement = score.score_labels(name, name, data_dir=data_dir)
  assert agreement.results['miou'] == agreement.results['accuracy'] == 1
  with pytest.raises(UserError, match=r"has no image in split 'dev'; it has splits"):
    score.score(f'{name}:dev', name, metrics=('l1',), data_dir=data_dir)
  with pytest.raises(UserError, match="'photos' is not prepared"):
    score.score('photos', name, metrics=('l1',), data_dir=data_dir)


def test_pictures_of_one_name_are_refused_in_a_folder_and_in_a_dataset_alike(images, tmp_path):
  for name, image in zip(('1.png', '1.jpg'), images[0].values(), strict=False):
    pictures.write_picture(tmp_path / 'faces' / 'test' / name, image)
  prepare('face_folder', source=tmp_path / 'faces', data_dir=tmp_path)
  for where in (tmp_path / 'faces', 'face_folder/faces:test'):
    with pytest.raises(UserError, match=r'more than one picture is called test/1; names must differ by more than suf'):
      open_pictures(where, data_dir=tmp_path)


def test_few_pictures_have_no_fid(folders):
  with pytest.raises(UserError, match=r'FID of 11 pictures is mostly noise.*take kid, or say --allow-few'):
    score.score(*folders)


def test_wrong_input_says_what_is_right(folders, tmp_path):
  with pytest.raises(UserError, match='unknown metric is, psnrr; choose from fid, kid, lpips'):
    score.score(*folders, metrics=('is', 'fid', 'psnrr'))
  with pytest.raises(UserError, match=r'too small.*see --resize and --ssim-window'):
    score.score(*folders, metrics=('ms_ssim',))
  with pytest.raises(UserError, match='no such folder'):
    score.score(folders[0], tmp_path / 'none')
  (folders[0] / '9.png').unlink()
  (folders[1] / '10.png').rename(folders[1] / 'ten.png')
  with pytest.raises(UserError, match=r'3 have no partner.*only in \S+real: 10; only in \S+fake: 9, ten'):
    score.score(*folders, metrics=('psnr',))
  (folders[1] / '1.jpg').write_bytes(b'')
  with pytest.raises(UserError, match='more than one picture is called 1'):
    score.score(*folders, metrics=('psnr',))


def test_label_maps_counted_by_hand(tmp_path):
  truth, prediction = np.zeros((2, 4, 4), np.uint8)
  truth[:2], prediction[:3] = 1, 1
  names = {'a': truth, 'b': truth}
  folders = _write(tmp_path / 'a', names), _write(tmp_path / 'b', {'a': prediction, 'b': truth})
  result = score.score_labels(*folders)
  assert result.results == pytest.approx(
    {
      'miou': (16 / 20 + 12 / 16) / 2,
      'mean_f1': (2 * 16 / 36 + 2 * 12 / 28) / 2,
      'accuracy': 28 / 32,
      'iou/background': 12 / 16,
      'iou/skin': 16 / 20,
    }
  )
  pictures.write_picture(folders[1] / 'b.png', truth + 18)
  partly = score.score_labels(*folders)
  assert partly.skipped == {'label values outside 0..18': ['b']}
  assert partly.results['accuracy'] == 12 / 16


def test_label_orders_are_told_apart(tmp_path):
  ours = np.arange(19, dtype=np.uint8)[None]
  theirs = np.argsort(labels.lookup_table('bisenet')).astype(np.uint8)[None]
  folders = _write(tmp_path / 'a', {'a': ours}), _write(tmp_path / 'b', {'a': theirs})
  assert score.score_labels(*folders, orders=('celebamask_hq', 'bisenet')).results['miou'] == 1
  assert score.score_labels(*folders).results['miou'] < 0.5


def test_sides_can_be_united(tmp_path):
  truth = np.arange(19, dtype=np.uint8)[None]
  folders = _write(tmp_path / 'a', {'a': truth}), _write(tmp_path / 'b', {'a': labels.MIRROR[truth]})
  assert score.score_labels(*folders).results['iou/l_eye'] == 0
  united = score.score_labels(*folders, unite_sides=True).results
  assert united['miou'] == 1
  # Eyes, brows and ears; the lower lip has no other side.
  assert len([name for name in united if name.startswith('iou/')]) == 19 - 3
  assert score.score_labels(*folders, unite_sides=True).details['miou'].startswith('mean over 16 classes of 16;')
  assert {'iou/eye', 'iou/brow', 'iou/ear', 'iou/l_lip', 'iou/ear_r'} <= united.keys()


def _command(*words):
  parser = argparse.ArgumentParser()
  score.register(parser.add_subparsers())
  args = parser.parse_args(['score', *map(str, words)])
  return args.run(args)


def test_command(folders, tmp_path, capsys):
  out = tmp_path / 'results' / 'score.json'
  assert _command(*folders, '--metrics', 'l1,fid', '--allow-few', '--out', out) == 0
  written = json.loads(out.read_text())
  assert set(written['results']) == {'l1', 'fid'}
  assert f'{written["results"]["fid"]:.6g}' in capsys.readouterr().out
  maps = _write(tmp_path / 'maps', {'a': np.eye(4, dtype=np.uint8)})
  _command('--labels', maps, maps, '--label-order', 'bisenet')
  assert 'iou/skin        1\n' in capsys.readouterr().out


def test_what_cannot_be_written_is_told_before_the_work(folders, tmp_path, monkeypatch):
  monkeypatch.setattr(score, 'read_each', lambda *_: pytest.fail('nothing may be read'))
  words = [*folders, '--metrics', 'l1', '--allow-few']
  (tmp_path / 'file').touch()
  (tmp_path / 'folder.json').mkdir()
  (tmp_path / 'folder.npz').mkdir()
  before = sorted(tmp_path.iterdir())
  for option, places in (
    ('--out', (tmp_path / 'folder.json', tmp_path / 'file/x.json', '/proc/x/y.json')),
    ('--save-statistics', (tmp_path / 'folder.npz', tmp_path / 'file/x.npz', '/proc/x/y.npz')),
  ):
    for place in places:
      with pytest.raises(UserError, match=f'cannot write {place}: .*; choose another {option}'):
        _command(*words, option, place)
  with pytest.raises(UserError, match='folder.json: it is a folder'):
    _command('--labels', *folders, '--out', tmp_path / 'folder.json')
  assert sorted(tmp_path.iterdir()) == before


def test_pairs_go_by_name_and_batches_by_shape():
  a, b = (PictureSet(name, keys, lambda i: i) for name, keys in (('a', ('x', 'y', 'z')), ('b', ('z', 'x', 'y'))))
  assert paired(a, b) == [(0, 1), (1, 2), (2, 0)]
  sides = [1, 2, 1, 3, 1, 2, 4, 5, 6, 7, 8, 2]
  batches = list(batches_by_shape(((np.zeros(side),) for side in sides), 2))
  assert sorted(len(item) for batch in batches for (item,) in batch) == sorted(sides)
  assert all(len({item.shape for (item,) in batch}) == 1 and len(batch) <= 2 for batch in batches)
  assert len(batches) == len(set(sides)) + 2


def test_the_command_measures_as_it_is_told(monkeypatch, tmp_path):
  told = []
  made = score.Score({}, {'l1': 0.0}, {}, {})
  monkeypatch.setattr(score, 'score', lambda *words, **options: told.append((words, options)) or made)
  monkeypatch.setattr(score, 'score_labels', lambda *words, **options: told.append((words, options)) or made)
  _command('a', 'b', '--metrics', 'l1,ssim', '--resize', 32, '--ssim-window', 7, '--batch-size', 3, '--data-dir', 'd')
  _command('a', 'b', '--labels', '--unite-sides', '--label-order', 'bisenet', 'celebamask_hq')
  (words, options), (_, of_labels) = told
  assert words == ('a', 'b')
  assert options == {
    'metrics': ['l1', 'ssim'], 'resize': 32, 'ssim_window': 7, 'allow_few': False, 'batch_size': 3,
    'weights_dir': None, 'data_dir': Path('d'), 'save_statistics': None,
  }  # fmt: skip
  assert of_labels == {'orders': ('bisenet', 'celebamask_hq'), 'unite_sides': True, 'data_dir': None}
