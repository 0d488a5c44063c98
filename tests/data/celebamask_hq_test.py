"""CelebAMask-HQ as it is downloaded becomes records: parts merged in the official order, official split, one size."""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxface import labels, pictures
from jaxface.cli import load_config
from jaxface.errors import UserError
from jaxface_data.celebamask_hq import celebamask_hq_dataset_builder as celebamask_hq
from tests.smoke import REPOSITORY

NUMBERS = (0, 1, 2000, 27_998, 27_999, 28_000, 29_999)
SIDE = 32  # Of the pictures; their part masks have half of it, as in the real thing.


def picture(number):
  return np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def part_mask(top, bottom, mode='RGB'):
  mask = np.zeros((SIDE // 2, SIDE // 2), np.uint8)
  mask[top:bottom] = 255
  return Image.fromarray(mask).convert(mode)


def write_part(source, number, part, mask):
  path = source / celebamask_hq.PARTS / str(number // 2000) / f'{number:05d}_{part}.png'
  path.parent.mkdir(parents=True, exist_ok=True)
  mask.save(path)


@pytest.fixture
def source(tmp_path):
  """A folder laid out as the real one: skin over the whole picture, nose and hair over parts of it."""
  root = tmp_path / 'CelebAMask-HQ'
  (root / celebamask_hq.PICTURES).mkdir(parents=True)
  for number in NUMBERS:
    Image.fromarray(picture(number)).save(root / celebamask_hq.PICTURES / f'{number}.jpg', quality=95)
    write_part(root, number, 'skin', part_mask(2, 16))
    write_part(root, number, 'hair', part_mask(0, 4, mode='L'))
    write_part(root, number, 'nose', part_mask(3, 8))
  return root


def merged():
  """The label map of every picture of `source`, at the part masks' size."""
  rows = np.array(['hair'] * 4 + ['nose'] * 4 + ['skin'] * 8)
  return np.array([labels.index(row) for row in rows], np.uint8)[:, None].repeat(SIDE // 2, 1)


def build(tmp_path, source, **options):
  config = celebamask_hq.make_config(source=source, **options)
  builder = celebamask_hq.Builder(data_dir=tmp_path / 'prepared', config=config, workers=2)
  builder.download_and_prepare(file_format='array_record')
  return tfds.builder_from_directory(builder.data_dir)


def numbers(builder):
  return {split: [int(record['id'][:-4]) for record in builder.as_data_source(split)] for split in builder.info.splits}


def test_official_split(tmp_path, source):
  builder = build(tmp_path, source)
  assert builder.info.full_name == 'celebamask_hq/aligned_512/1.0.0'
  assert numbers(builder) == {'train': [0, 1, 2000, 27_998, 27_999], 'test': [28_000, 29_999]}
  assert builder.info.metadata['skipped'] == {}


def test_validation_is_taken_from_the_end_of_training(tmp_path, source):
  found = numbers(build(tmp_path, source, validation=1, count=2))
  assert found == {'train': [0, 1], 'validation': [27_999], 'test': [28_000, 29_999]}


def test_pictures_keep_their_bytes_and_parts_are_merged_at_the_pictures_size(tmp_path, source):
  builder = build(tmp_path, source)
  for record in builder.as_data_source('test', decoders={'image': tfds.decode.SkipDecoding()}):
    assert record['image'] == (source / celebamask_hq.PICTURES / str(record['id'], 'utf8')).read_bytes()
    np.testing.assert_array_equal(record['label'][..., 0], merged().repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize('size', [16, 24])
def test_pictures_are_averaged_down_and_label_maps_never_mixed(tmp_path, source, size):
  (record,) = build(tmp_path, source, size=size, count=1).as_data_source('test')
  original = pictures.read_picture(source / celebamask_hq.PICTURES / '28000.jpg').astype(float)
  assert record['image'].shape == (size, size, 3)
  if size == 16:
    np.testing.assert_allclose(record['image'], original.reshape(16, 2, 16, 2, 3).mean((1, 3)), atol=0.51)
  # An output pixel takes the part that its centre lies in.
  nearest = (np.arange(size) + 0.5) * 16 // size
  np.testing.assert_array_equal(record['label'][..., 0], merged()[nearest.astype(int)][:, nearest.astype(int)])


def test_later_parts_cover_earlier_ones_in_the_official_order(tmp_path):
  paths = {}
  for name in reversed(labels.CLASSES[1:]):
    paths[name] = tmp_path / f'00000_{name}.png'
    # Each part begins a row below the one before it, and reaches to the end.
    part_mask(labels.index(name) - 4, 16).save(paths[name])
  expected = np.concatenate([[4], np.arange(5, 19), [18]]).astype(np.uint8)
  np.testing.assert_array_equal(celebamask_hq.merge_parts(paths), expected[:, None].repeat(16, 1))


@pytest.mark.parametrize('mode', ['RGB', 'L', 'P', '1'])
def test_part_masks_of_any_kind(tmp_path, mode):
  part_mask(4, 8, mode).save(tmp_path / 'a.png')
  expected = np.zeros((16, 16), np.uint8)
  expected[4:8] = labels.index('hat')
  np.testing.assert_array_equal(celebamask_hq.merge_parts({'hat': tmp_path / 'a.png'}), expected)


def test_what_cannot_be_used_is_skipped_and_counted(tmp_path, source):
  for path in (source / celebamask_hq.PARTS).glob('0/00001_*'):
    path.unlink()
  (source / celebamask_hq.PICTURES / '27998.jpg').unlink()
  write_part(source, 0, 'skin', Image.new('L', (20, 20)))
  write_part(source, 2000, 'beard', part_mask(0, 4))
  data = (source / celebamask_hq.PARTS / '14' / '29999_nose.png').read_bytes()
  (source / celebamask_hq.PARTS / '14' / '29999_nose.png').write_bytes(data[:40])
  builder = build(tmp_path, source)
  assert numbers(builder) == {'train': [2000, 27_999], 'test': [28_000]}
  skipped = {reason: sorted(names) for reason, names in builder.info.metadata['skipped'].items()}
  assert skipped == {
    'no part masks': ['1.jpg'],
    'part masks without a picture': ['27998'],
    'not the mask of a known part': ['02000_beard.png'],
    'part masks of different sizes': ['0.jpg'],
    'not a picture in a known format': ['29999.jpg'],
  }


def test_dangling_links_are_skipped(tmp_path, source):
  write_part(source, 0, 'hat', part_mask(0, 1))
  for path in (source / celebamask_hq.PICTURES / '1.jpg', source / celebamask_hq.PARTS / '0' / '00000_hat.png'):
    path.unlink()
    path.symlink_to('nowhere')
  builder = build(tmp_path, source)
  assert sorted(builder.info.metadata['skipped']['no such file']) == ['0.jpg', '1.jpg']


def test_the_least_bytes_are_those_of_the_jpegs_where_these_are_kept(source):
  least = lambda size: celebamask_hq.Builder(config=celebamask_hq.make_config(source=source, size=size)).least_bytes()
  files = (source / celebamask_hq.PICTURES).iterdir()
  assert least(1024) == sum(path.stat().st_size for path in files)
  assert least(16) == len(NUMBERS) * 16 * 16 // 2


def test_a_changed_part_changes_the_digest(source):
  digest = lambda: celebamask_hq.Builder(config=celebamask_hq.make_config(source=source)).listing.digest()
  before = digest()
  assert digest() == before
  write_part(source, 0, 'hat', part_mask(0, 1))
  assert digest() != before


def test_wrong_options(tmp_path, source):
  (tmp_path / 'empty' / celebamask_hq.PICTURES).mkdir(parents=True)
  assert celebamask_hq.make_config(source=source.parent).source == str(source)
  for options, why in [
    (dict(source=tmp_path / 'no'), 'no such folder'),
    (dict(source=tmp_path / 'empty'), 'no CelebAMask-HQ-mask-anno/ in it; give the unpacked folder'),
    (dict(source=source, size=2048), 'size=2048: choose 16 to 1024'),
    (dict(source=source, validation=28_000), 'validation=28000'),
    (dict(source=source, count=0), 'count=0'),
  ]:
    with pytest.raises(UserError, match=why):
      celebamask_hq.make_config(**options)


def test_pictures_and_parts_that_do_not_pair(tmp_path):
  (tmp_path / celebamask_hq.PICTURES).mkdir()
  buffer = io.BytesIO()
  Image.fromarray(picture(0)).save(buffer, 'JPEG')
  (tmp_path / celebamask_hq.PICTURES / '7.jpg').write_bytes(buffer.getvalue())
  write_part(tmp_path, 3, 'skin', part_mask(0, 4))
  with pytest.raises(UserError, match=r'pictures: 7\.jpg, part masks: 0/00003_skin\.png'):
    build(tmp_path, tmp_path)


def test_the_experiment_reads_what_is_prepared_by_default(source):
  config = load_config(str(REPOSITORY / 'experiments' / 'bisenet.py:celebamask_hq'), [])
  assert config.data.name == f'celebamask_hq/{celebamask_hq.make_config(source=source).name}'
  assert config.model.image_size == 512
