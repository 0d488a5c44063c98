"""The order of examples is a function of the seed alone, whoever reads them; evaluation sees each example once."""

import itertools
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxface import labels
from jaxface.errors import UserError
from jaxface.fields import take
from jaxface.input_pipeline import (
  RESIZES,
  Decode,
  ResidentBatches,
  TrainBatches,
  eval_batches,
  load_whole,
  open_dataset,
)
from jaxface.pictures import write_picture
from jaxface.prepare import find_prepared, prepare
from jaxface.resize import bicubic_levels
from tests.smoke import REPOSITORY


@pytest.fixture(scope='module')
def dataset(data_dir):
  return open_dataset('synthetic_faces/faces_16', 'train', ('image', 'mask', 'label'), image_size=16, data_dir=data_dir)


def _stream(dataset, *, next_batch=0, process=(0, 1), workers=0, batch_size=8, seed=0):
  return TrainBatches(
    dataset, batch_size=batch_size, seed=seed, next_batch=next_batch, process=process, workers=workers
  )


def _take(stream, count):
  return list(itertools.islice(stream, count))


def _assert_same(got, expected):
  assert len(got) == len(expected)
  for a, b in zip(got, expected, strict=True):
    assert a.keys() == b.keys()
    for name in a:
      np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_batches_are_uint8_and_repeatable(dataset):
  batches = _take(_stream(dataset), 9)
  shapes = {'image': (8, 16, 16, 3), 'mask': (8, 16, 16, 1), 'label': (8, 16, 16)}
  for name, shape in shapes.items():
    assert batches[0][name].shape == shape
    assert batches[0][name].dtype == np.uint8
  np.testing.assert_array_equal(batches[0]['row'], np.arange(8))
  _assert_same(_take(_stream(dataset), 9), batches)
  assert not np.array_equal(next(_stream(dataset, seed=1))['image'], batches[0]['image'])


def test_data_made_with_other_options_are_other_data(tmp_path):
  found = {}
  for name, seed in (('a', 0), ('b', 0), ('c', 7)):
    prepare('synthetic_faces', size=16, count=30, seed=seed, data_dir=tmp_path / name)
    faces = open_dataset('synthetic_faces/faces_16', 'train', ('image',), image_size=16, data_dir=tmp_path / name)
    found[name] = faces.fingerprint
  assert re.fullmatch(r'synthetic_faces/faces_16/[\d.]+/train/24#[0-9a-f]{8}', found['a'])
  assert found['a'] == found['b'] != found['c']


@pytest.mark.parametrize('length', [None, 1000])
def test_a_dataset_that_was_copied_in_part_says_so(tmp_path, length):
  folder = prepare('synthetic_faces', size=16, count=30, data_dir=tmp_path).path
  (file,) = folder.glob('*-train.*')
  data = file.read_bytes()
  file.unlink()
  if length:
    file.write_bytes(data[:length])
  with pytest.raises(UserError, match=r'-train.*: 0 of 24 records are there; copy the dataset again'):
    open_dataset('synthetic_faces/faces_16', 'train', ('image',), image_size=16, data_dir=tmp_path)


def test_the_same_files_are_the_same_data_wherever_they_lie(tmp_path):
  found = []
  for place in ('a', 'b', 'c'):
    for i in range(10):
      write_picture(tmp_path / place / 'images' / f'{i}.png', np.full((8, 8, 3), i, np.uint8))
      write_picture(tmp_path / place / 'maps' / f'{i}.png', np.full((8, 8), i, np.uint8))
    if place == 'c':
      write_picture(tmp_path / place / 'maps' / '0.png', np.tri(8, dtype=np.uint8))
    data_dir = tmp_path / place / 'data'
    options = {'source': tmp_path / place / 'images', 'labels': tmp_path / place / 'maps', 'name': 'mine'}
    prepare('face_folder', data_dir=data_dir, **options)
    found.append(open_dataset('face_folder/mine', 'train', ('image',), image_size=8, data_dir=data_dir))
  a, b, c = (each.fingerprint for each in found)
  assert a == b != c


def test_every_epoch_has_every_example_once_in_another_order(dataset):
  assert len(dataset) == 48
  epochs = [np.concatenate([b['image'] for b in _take(_stream(dataset, next_batch=first), 6)]) for first in (0, 6)]
  whole = load_whole(dataset)['image']
  sort = lambda images: sorted(image.tobytes() for image in images)
  assert sort(epochs[0]) == sort(epochs[1]) == sort(whole)
  assert not np.array_equal(epochs[0], epochs[1])


def test_a_stream_goes_on_from_any_batch(dataset):
  whole = _take(_stream(dataset), 8)
  _assert_same(_take(_stream(dataset, next_batch=5), 3), whole[5:])


def test_processes_share_out_the_same_batches(dataset):
  whole = _take(_stream(dataset), 3)
  parts = [_take(_stream(dataset, process=(p, 4)), 3) for p in range(4)]
  for t, batch in enumerate(whole):
    for p in range(4):
      # The row number says which row of the global batch it is.
      rows = parts[p][t]['row']
      np.testing.assert_array_equal(rows, [p, p + 4])
      np.testing.assert_array_equal(parts[p][t]['image'], batch['image'][rows])


def test_worker_processes_change_nothing_and_outlive_what_asks_the_run_to_stop(dataset):
  before = set(multiprocessing.active_children())
  stream = _stream(dataset, workers=2)
  got = _take(stream, 2)  # One of each: both are at work.
  workers = set(multiprocessing.active_children()) - before
  assert len(workers) == 2
  for worker in workers:
    for number in (signal.SIGINT, signal.SIGTERM):
      os.kill(worker.pid, number)
  got += _take(stream, 38)  # More than lie ready.
  _assert_same(got, _take(_stream(dataset), 40))
  del stream
  for worker in workers:
    worker.join(timeout=30)
    assert not worker.is_alive()


_READ_FOREVER = """
import multiprocessing, sys, time
from jaxface.input_pipeline import TrainBatches, open_dataset
if __name__ == '__main__':
  dataset = open_dataset('synthetic_faces/faces_16', 'train', ('image',), image_size=16, data_dir=sys.argv[1])
  stream = TrainBatches(dataset, batch_size=8, seed=0, next_batch=0, process=(0, 1), workers=1)
  next(stream)
  print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)
  time.sleep(300)
"""


def test_workers_do_not_outlive_the_run(data_dir, tmp_path):
  (tmp_path / 'program.py').write_text(_READ_FOREVER)
  command = [sys.executable, str(tmp_path / 'program.py'), str(data_dir)]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as run:
    (worker,) = map(int, run.stdout.readline().split())
    run.kill()
  deadline = time.monotonic() + 60
  while Path(f'/proc/{worker}').exists():
    assert time.monotonic() < deadline
    time.sleep(0.1)


def test_resident_batches_follow_the_same_order(dataset):
  whole = load_whole(dataset)
  resident = ResidentBatches(dataset, batch_size=8, seed=0, next_batch=3, process=(1, 2))
  for batch, expected in zip(_take(resident, 4), _take(_stream(dataset, next_batch=3, process=(1, 2)), 4), strict=True):
    np.testing.assert_array_equal(batch['row'], expected['row'])
    for name in whole:
      np.testing.assert_array_equal(whole[name][batch['index']], expected[name])


def test_evaluation_covers_each_example_once(dataset):
  whole = load_whole(dataset)['image']
  for process_count in (1, 2):
    seen = {}
    for p in range(process_count):
      batches = list(eval_batches(dataset, batch_size=10, process=(p, process_count)))
      assert len(batches) == 5
      for t, batch in enumerate(batches):
        for row, weight, image in zip(batch['row'], batch['weight'], batch['image'], strict=True):
          if weight:
            assert t * 10 + row not in seen
            seen[t * 10 + row] = image
    np.testing.assert_array_equal(np.stack([seen[i] for i in range(48)]), whole)
  assert len(list(eval_batches(dataset, batch_size=10, limit=2))) == 2


def test_masks_are_resized_as_the_public_code_does():
  label = np.random.default_rng(0).integers(0, 19, (22, 18, 1), np.uint8)
  mask = Decode(('mask',), 16).map({'label': label})['mask']
  expected = cv2.resize(labels.FACE[label[..., 0]].astype(np.float32), (16, 16), interpolation=cv2.INTER_LINEAR)
  np.testing.assert_allclose(mask[..., 0] / 255, expected, atol=0.5 / 255 + 1e-6)
  assert ((mask > 0) & (mask < 255)).any(), 'the edge is soft'


def test_the_mask_of_a_small_picture_is_enlarged_as_the_picture_is():
  label = np.random.default_rng(0).integers(0, 19, (6, 5, 1), np.uint8)
  image = labels.FACE[label[..., 0]][..., None].repeat(3, 2) * np.uint8(255)
  for resize in RESIZES:
    enlarged = Decode(('image', 'mask'), 16, resize).map({'image': image, 'label': label})
    np.testing.assert_allclose(enlarged['mask'][..., 0].astype(int), enlarged['image'][..., 0], atol=1)


def test_area_averages_where_bilinear_skips():
  stripes = np.zeros((64, 64, 3), np.uint8)
  stripes[:, ::4] = 255  # None of the two pixels next to a centre, which bilinear takes.
  area = Decode(('image',), 16, 'area').map({'image': stripes})['image']
  np.testing.assert_allclose(area, 63.75, atol=1)
  label = np.full((64, 64, 1), 18, np.uint8)
  assert Decode(('label',), 16).map({'label': label})['label'].shape == (16, 16)


def test_antialiased_is_pillows_bilinear():
  picture = np.random.default_rng(0).integers(0, 256, (37, 41, 3), np.uint8)
  found = Decode(('image',), 16, 'antialiased').map({'image': picture})['image']
  np.testing.assert_array_equal(found, Image.fromarray(picture).resize((16, 16), Image.Resampling.BILINEAR))


@pytest.mark.parametrize('resize', RESIZES)
def test_blue_for_textures_is_resized_as_the_published_script_does(resize):
  picture = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (361, 361, 3), np.uint8), (0, 0), 1)
  found = Decode(('blue', 'reference_blue'), 321, resize).map({'image': picture, 'reference_image': picture[::-1]})
  for field, stored in (('blue', picture), ('reference_blue', picture[::-1])):
    expected = bicubic_levels(stored[None, ..., 2:], (321, 321))[0, ..., 0]
    off = np.abs(found[field] - expected)[4:-4, 4:-4]  # Pillow's borders are another's.
    assert off.max() <= 1
    assert (off == 0).mean() > 0.99


def test_labels_are_those_at_the_centres_of_what_a_pixel_shows():
  places = np.arange(36, dtype=np.uint8).reshape(6, 6, 1)
  found = Decode(('label',), 2).map({'label': places})['label']
  np.testing.assert_array_equal(found, places[1::3, 1::3, 0])


def test_true_results_are_resized_as_their_pictures_are():
  picture = np.random.default_rng(0).integers(0, 256, (37, 41, 3), np.uint8)
  for resize in RESIZES:
    decode = Decode(('image', 'makeup_image'), 16, resize)
    found = decode.map({'image': picture, 'makeup_image': picture})
    np.testing.assert_array_equal(found['makeup_image'], found['image'])


def test_wrong_names_say_what_there_is(data_dir):
  with pytest.raises(UserError, match="no examples in split 'tset'"):
    open_dataset('synthetic_faces/faces_16', 'tset', ('image',), image_size=16, data_dir=data_dir)
  with pytest.raises(UserError, match='synthetic_faces/faces_16.*jaxface prepare'):
    open_dataset('synthetic_faces/faces_99', 'train', ('image',), image_size=16, data_dir=data_dir)
  with pytest.raises(UserError, match=r'data.resize .*choose from bilinear, antialiased, area'):
    open_dataset('synthetic_faces/faces_16', 'train', ('image',), image_size=16, data_dir=data_dir, resize='cubic')


def test_too_large_a_batch_says_the_largest(dataset):
  with pytest.raises(UserError, match='batch_size=64 is more than the 48 examples.*at most 48'):
    _stream(dataset, batch_size=64)
  with pytest.raises(UserError, match='batch_size=64 is more than the 48 examples.*at most 48'):
    ResidentBatches(dataset, batch_size=64, seed=0, next_batch=0, process=(0, 1))
  assert len(next(_stream(dataset, batch_size=48))['image']) == 48


def test_pictures_without_labels_give_no_masks(tmp_path):
  folder = tmp_path / 'photos'
  folder.mkdir()
  for i in range(10):
    cv2.imwrite(str(folder / f'{i}.png'), np.full((20, 24, 3), i, np.uint8))
  prepare('face_folder', data_dir=tmp_path / 'data', source=folder, name='mine')
  with pytest.raises(UserError, match='no label; prepare it with --labels, or train a variant without masks'):
    open_dataset('face_folder/mine', 'train', ('image', 'mask'), image_size=16, data_dir=tmp_path / 'data')
  plain = open_dataset(
    'face_folder/mine', 'train', ('image',), optional_fields=('mask',), image_size=16, data_dir=tmp_path / 'data'
  )
  assert set(load_whole(plain)) == {'image'}
  assert tfds.builder_from_directory(find_prepared(tmp_path / 'data', 'face_folder/mine')).info.splits


PAIR = ('image', 'label', 'reference_image', 'reference_label')


@pytest.fixture(scope='module')
def pairs(makeup_dir):
  return open_dataset(
    'synthetic_faces/makeup_16', 'train', PAIR, image_size=16, optional_fields=('makeup_image',), data_dir=makeup_dir
  )


def test_references_come_in_an_order_of_their_own(pairs):
  whole = load_whole(pairs)
  assert set(whole) == {*PAIR, 'makeup_image'}
  place = lambda field, image: next(i for i, other in enumerate(whole[field]) if np.array_equal(other, image))
  met = []
  for batch in _take(_stream(pairs), 12):
    for i in range(8):
      row, other = place('image', batch['image'][i]), place('reference_image', batch['reference_image'][i])
      np.testing.assert_array_equal(batch['label'][i], whole['label'][row])
      np.testing.assert_array_equal(batch['reference_label'][i], whole['reference_label'][other])
      met.append((row, other))
  # Two epochs of 48: everyone twice, on either side, and hardly anyone twice with the same partner.
  for side in zip(*met, strict=True):
    assert sorted(side) == sorted([*range(48)] * 2)
  assert len(set(met)) > 85
  assert sum(row == other for row, other in met) < 10


def test_pairs_go_on_from_any_batch_in_any_process_and_from_the_devices(pairs):
  whole = _take(_stream(pairs), 5)
  _assert_same(_take(_stream(pairs, next_batch=3), 2), whole[3:])
  part = _take(_stream(pairs, process=(1, 2)), 2)
  for name in PAIR:
    np.testing.assert_array_equal(part[1][name], whole[1][name][1::2])
  resident = ResidentBatches(pairs, batch_size=8, seed=0, next_batch=3, process=(0, 1))
  _assert_same([take(load_whole(pairs), batch) for batch in _take(resident, 2)], whole[3:])


def test_who_needs_the_true_result_gets_its_own_reference_in_training(pairs, makeup_dir):
  paired = open_dataset(
    'synthetic_faces/makeup_16', 'train', (*PAIR, 'makeup_image'), image_size=16, data_dir=makeup_dir
  )
  assert paired.fingerprint != pairs.fingerprint
  whole = load_whole(paired)
  batches = _take(_stream(paired), 2)
  for batch in batches:
    for i, image in enumerate(batch['image']):
      row = next(n for n, other in enumerate(whole['image']) if np.array_equal(other, image))
      for field in ('reference_image', 'reference_label', 'makeup_image'):
        np.testing.assert_array_equal(batch[field][i], whole[field][row])
  resident = ResidentBatches(paired, batch_size=8, seed=0, next_batch=0, process=(0, 1))
  _assert_same([take(whole, batch) for batch in _take(resident, 2)], batches)


def test_evaluation_pairs_faces_with_their_own_reference_or_a_drawn_one(pairs, makeup_dir):
  whole = load_whole(pairs)
  joined = lambda dataset: np.concatenate([b['reference_image'] for b in eval_batches(dataset, batch_size=16)])
  np.testing.assert_array_equal(joined(pairs), whole['reference_image'])
  drawn = [
    joined(open_dataset('synthetic_faces/makeup_16', 'train', PAIR, image_size=16, data_dir=makeup_dir, draw=draw))
    for draw in (0, 0, 1)
  ]
  np.testing.assert_array_equal(drawn[0], drawn[1])
  assert (drawn[0] != drawn[2]).any()
  assert (drawn[0] != whole['reference_image']).any()
  # Of a drawn reference the true result is not known.
  one = open_dataset(
    'synthetic_faces/makeup_16', 'train', PAIR, image_size=16, optional_fields=('makeup_image',), data_dir=makeup_dir,
    draw=0,
  )  # fmt: skip
  assert set(one.example(0)) == set(PAIR)
  assert set(pairs.example(0)) == {*PAIR, 'makeup_image'}


def test_references_may_be_a_split_of_their_own(tmp_path):
  # As in Makeup Transfer: unequal numbers of faces with and without makeup.
  source = tmp_path / 'mt'
  rng = np.random.default_rng(0)
  for kind, count in (('makeup', 30), ('non-makeup', 20)):
    for i in range(count):
      image = rng.integers(0, 256, (24, 24, 3), np.uint8)
      label = np.full((24, 24), 1, np.uint8)  # Skin and hair, and a nose on those without makeup.
      label[:6] = 10
      label[12:16, 10:14] = 1 if kind == 'makeup' else 6
      write_picture(source / 'images' / kind / f'{i}.png', image)
      write_picture(source / 'segs' / kind / f'{i}.png', label)
  prepare('makeup_transfer', source=source, data_dir=tmp_path / 'data', test_makeup=3, test_non_makeup=2)
  opened = {}
  for split in ('train', 'test'):
    opened[split] = open_dataset('makeup_transfer/mt', split, PAIR, image_size=16, data_dir=tmp_path / 'data')
  assert (len(opened['train']), len(opened['train'].companion)) == (18, 27)
  draws = [
    open_dataset('makeup_transfer/mt', 'train', PAIR, image_size=16, data_dir=tmp_path / 'data', draw=draw)
    for draw in range(5)
  ]
  # Each draw is another one, of all references, though there are more of them than targets.
  assert len({tuple(draw.companion.rows) for draw in draws}) == 5
  assert set(np.concatenate([draw.companion.rows for draw in draws])) >= {0, 26}
  assert {field: len(values) for field, values in load_whole(opened['train']).items()} == dict(
    zip(PAIR, (18, 18, 27, 27), strict=True)
  )
  batch = next(_stream(opened['train'], batch_size=4))
  assert batch['reference_image'].shape == (4, 16, 16, 3)
  assert [(batch[field] == labels.index('nose')).any() for field in ('label', 'reference_label')] == [True, False]
  assert [b['weight'].sum() for b in eval_batches(opened['test'], batch_size=4)] == [2]


@pytest.mark.parametrize('position', [0, 50])
def test_batches_of_one_picture_go_on_for_ever(dataset, position):
  one, several = (_stream(dataset, next_batch=position, batch_size=size) for size in (1, 8))
  (batch,) = _take(one, 1)
  assert batch['image'].shape == (1, 16, 16, 3)
  if not position:
    np.testing.assert_array_equal(batch['image'], next(several)['image'][:1])
