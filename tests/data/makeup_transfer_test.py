"""Faces with and without makeup, however they are laid out, become the same records, in splits of both kinds."""

import hashlib

import numpy as np
import pytest
import tensorflow_datasets as tfds

from jaxface import labels, pictures
from jaxface.errors import UserError
from jaxface_data.makeup_transfer import makeup_transfer_dataset_builder as makeup_transfer

SIDE = 20
SPLITS = ('train_makeup', 'train_non_makeup', 'test_makeup', 'test_non_makeup')


def picture(seed):
  return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def label_map(values=14):
  return (np.arange(SIDE)[:, None] % values).repeat(SIDE, 1).astype(np.uint8)


def mask(top=4):
  """At another size than the picture's, black where the face is."""
  kept = np.full((SIDE // 2, SIDE // 2), 255, np.uint8)
  kept[top:] = 0
  return kept


def write(folder, count, image=picture, first=0):
  for i in range(first, first + count):
    pictures.write_picture(folder / f'{i}.png', image(i) if image is picture else image())
  return folder


def write_mt(root, makeup=6, non_makeup=5):
  for kind, count in (('makeup', makeup), ('non-makeup', non_makeup)):
    write(root / 'images' / kind, count)
    write(root / 'segs' / kind, count, label_map)
  return root


def write_ipmnet(root, stages=('train', 'test'), suffix='_mask', count=3):
  for stage in stages:
    for side in 'AB':
      write(root / f'{stage}{side}', count)
      write(root / f'{stage}{side}{suffix}', count, mask)
      write(root / f'{stage}{side}_highcontract', count)
  return root


def write_own(root, makeup='makeup', non_makeup='non-makeup', count=3):
  for kind in (makeup, non_makeup):
    write(root / kind, count)
  return root


def build(tmp_path, source, parser=None, **options):
  config = makeup_transfer.make_config(source=source, **options)
  builder = makeup_transfer.Builder(data_dir=tmp_path / 'prepared', config=config, workers=2, parser=parser)
  builder.download_and_prepare(file_format='array_record')
  return tfds.builder_from_directory(builder.data_dir)


def listed(source, **options):
  listing = makeup_transfer.Builder(config=makeup_transfer.make_config(source=source, **options)).listing
  return {split: [item.id for item in items] for split, items in listing.splits.items()}


def records(builder):
  return {split: {str(r['id'], 'utf8'): r for r in builder.as_data_source(split)} for split in builder.info.splits}


def test_makeup_transfer_as_it_is_downloaded(tmp_path):
  source = write_mt(tmp_path / 'all')
  builder = build(tmp_path, source, test_makeup=2, test_non_makeup=1)
  assert builder.info.full_name == 'makeup_transfer/mt/1.0.0'
  found = records(builder)
  assert {split: len(names) for split, names in found.items()} == dict(zip(SPLITS, (4, 4, 2, 1), strict=True))
  assert {*found['train_makeup'], *found['test_makeup']} == {f'makeup/{i}.png' for i in range(6)}
  for split in SPLITS:
    for name, record in found[split].items():
      np.testing.assert_array_equal(record['image'], pictures.read_picture(source / 'images' / name))
      names = np.array(labels.CLASSES)[record['label'][:14, 0, 0]]
      assert tuple(names) == labels.MAKEUP_TRANSFER_CLASSES
  assert builder.info.metadata['skipped'] == {}
  assert builder.info.metadata['caveat'] == ''
  assert listed(tmp_path, test_makeup=2, test_non_makeup=1) == {split: list(found[split]) for split in SPLITS}


def test_the_pictures_held_out_are_those_with_the_smallest_hashes(tmp_path):
  source = write_mt(tmp_path, makeup=30, non_makeup=30)
  by_hash = sorted(range(30), key=lambda i: hashlib.sha256(str(i).encode()).hexdigest())
  before = listed(source, test_makeup=5, test_non_makeup=4, validation=3)
  numbers = {split: [int(name.split('/')[1][:-4]) for name in names] for split, names in before.items()}
  assert numbers['test_makeup'] == sorted(by_hash[:5])
  assert numbers['test_non_makeup'] == sorted(by_hash[:4])
  assert numbers['validation_makeup'] == sorted(by_hash[5:8])
  assert numbers['train_makeup'] == sorted(by_hash[8:])
  # A picture that loses its label map moves no other one.
  (source / 'segs' / before['test_makeup'][0]).unlink()
  after = listed(source, test_makeup=5, test_non_makeup=4, validation=3)
  assert after == {**before, 'test_makeup': before['test_makeup'][1:]}
  assert listed(source, test_makeup=5, test_non_makeup=4, count=2)['train_non_makeup'] == before['train_non_makeup'][:2]


def test_beautygan_holds_out_250_and_100(tmp_path):
  assert makeup_transfer._HELD_OUT == {'makeup': 250, 'non_makeup': 100}
  with pytest.raises(UserError, match='test_makeup=250: of the 6 makeup pictures one at least must stay for training'):
    listed(write_mt(tmp_path))


@pytest.mark.parametrize(('suffix', 'inside'), [('_mask', False), ('_face', True), ('_feature', False)])
def test_the_folders_of_ipm_net_and_their_masks(tmp_path, suffix, inside):
  source = tmp_path / 'makeup'
  for stage in ('train', 'test'):
    write_ipmnet(source / stage if inside else source, [stage], suffix)
  builder = build(tmp_path, source)
  assert builder.info.full_name == 'makeup_transfer/ipmnet/1.0.0'
  found = records(builder)
  assert list(found) == list(SPLITS)
  names = {split: {name.rpartition('/')[0] for name in found[split]} for split in SPLITS}
  folders = [f'{stage}/{stage}{side}' if inside else f'{stage}{side}' for stage in ('train', 'test') for side in 'AB']
  assert names == {split: {folder} for split, folder in zip(SPLITS, folders, strict=True)}
  expected = np.repeat([labels.index('background'), labels.index('skin')], [8, 12])[:, None].repeat(SIDE, 1)
  for record in found['test_non_makeup'].values():
    np.testing.assert_array_equal(record['label'][..., 0], expected)
  assert 'BeautyGAN cannot be trained' in builder.info.metadata['caveat']


def test_a_parser_and_label_maps_come_before_masks(tmp_path):
  source = write_ipmnet(tmp_path / 'source', ['test'])
  parsed = build(tmp_path, source, parser=lambda images: [image[..., 0] % 19 for image in images], name='parsed')
  for record in records(parsed)['test_makeup'].values():
    np.testing.assert_array_equal(record['label'][..., 0], record['image'][..., 0] % 19)
  for side in 'AB':
    write(tmp_path / 'maps' / f'test{side}', 3, lambda: label_map(19))
  read = build(tmp_path, source, labels=tmp_path / 'maps', name='read')
  for record in records(read)['test_makeup'].values():
    np.testing.assert_array_equal(record['label'][..., 0], label_map(19))
  assert parsed.info.metadata['caveat'] == read.info.metadata['caveat'] == ''


@pytest.mark.parametrize('names', [('makeup', 'non-makeup'), ('Makeup', 'no_makeup'), ('makeup', 'plain')])
def test_two_folders_of_ones_own(tmp_path, names):
  source = write_own(tmp_path / 'my faces', *names, count=11)
  for name in names:
    write(source / 'labels' / name, 11, lambda: label_map(19))
  builder = build(tmp_path, source)
  assert builder.info.full_name == 'makeup_transfer/my_faces/1.0.0'
  assert {split: len(found) for split, found in records(builder).items()} == dict(
    zip(SPLITS, (9, 9, 2, 2), strict=True)
  )
  (record, *_) = records(builder)['test_makeup'].values()
  np.testing.assert_array_equal(record['label'][..., 0], label_map(19))


def test_ones_own_folders_with_a_split_and_a_parser(tmp_path):
  source = tmp_path / 'mine'
  for stage in ('train', 'val', 'test'):
    write_own(source / stage, count=2)
  parser = lambda images: [image[..., 0] % 19 for image in images]
  found = records(build(tmp_path, source, parser, validation=1))
  assert list(found['validation_makeup']) == ['val/makeup/0.png', 'val/makeup/1.png', 'train/makeup/0.png']
  assert list(found['train_makeup']) == ['train/makeup/1.png']
  assert list(found['test_non_makeup']) == ['test/non-makeup/0.png', 'test/non-makeup/1.png']


def test_one_picture_of_a_kind_is_for_training(tmp_path):
  source = write_own(tmp_path / 'mine', count=1)
  for kind in ('makeup', 'non-makeup'):
    write(source / 'segs' / kind, 1, label_map)
  assert makeup_transfer.make_config(source=source).label_order == 'makeup_transfer'
  assert listed(source) == {'train_makeup': ['makeup/0.png'], 'train_non_makeup': ['non-makeup/0.png']}


def test_the_order_of_the_classes_in_segs_however_it_is_named(tmp_path):
  source = write_mt(tmp_path / 'mt')
  write(tmp_path / 'maps' / 'makeup', 1, label_map)
  order = lambda **options: makeup_transfer.make_config(source=source, **options).label_order
  assert order() == order(labels=source / 'segs') == 'makeup_transfer'
  assert order(labels=tmp_path / 'maps') == 'celebamask_hq'
  assert order(labels=source / 'segs', label_order='bisenet') == 'bisenet'


def test_dangling_links_are_skipped(tmp_path):
  source = write_mt(tmp_path / 'mt')
  (source / 'images' / 'makeup' / '1.png').unlink()
  (source / 'images' / 'makeup' / '1.png').symlink_to('nowhere.png')
  builder = build(tmp_path, source, test_makeup=0, test_non_makeup=0)
  assert builder.info.metadata['skipped'] == {'no such file': ['makeup/1.png']}


def test_what_cannot_be_used_is_skipped_and_counted(tmp_path):
  source = write_mt(tmp_path / 'mt', makeup=8)
  images, segs = source / 'images' / 'makeup', source / 'segs' / 'makeup'
  (images / '1.png').write_bytes(b'')
  (images / '2.png').write_bytes((images / '2.png').read_bytes()[:90])
  (segs / '3.png').unlink()
  (images / '4.png').unlink()
  pictures.write_picture(segs / '5.png', label_map(15))
  pictures.write_picture(segs / '6.png', np.zeros((SIDE, SIDE), np.uint8))
  builder = build(tmp_path, source, test_makeup=0, test_non_makeup=0)
  assert list(records(builder)['train_makeup']) == ['makeup/0.png', 'makeup/7.png']
  assert builder.info.metadata['skipped'] == {
    'no label map': ['makeup/3.png'],
    'label map without a picture': ['makeup/4'],
    'empty file': ['makeup/1.png'],
    'damaged or truncated': ['makeup/2.png'],
    'label values outside 0..13': ['makeup/5.png'],
    'a mask or label map without a face': ['makeup/6.png'],
  }


def test_masks_of_nothing_and_of_everything_are_skipped(tmp_path):
  source = write_ipmnet(tmp_path / 'ipm', ['test'])
  for i, top in ((0, 0), (1, SIDE)):
    pictures.write_picture(source / 'testA_mask' / f'{i}.png', mask(top))
  builder = build(tmp_path, source)
  assert list(records(builder)['test_makeup']) == ['testA/2.png']
  assert builder.info.metadata['skipped'] == {
    'a mask that is all face': ['testA/0.png'],
    'a mask or label map without a face': ['testA/1.png'],
  }


def test_a_kind_without_usable_pictures_is_an_error_that_says_why(tmp_path):
  source = write_mt(tmp_path / 'mt')
  for path in (source / 'segs' / 'makeup').iterdir():
    pictures.write_picture(path, label_map(19))
  with pytest.raises(UserError, match=r'not one usable picture in train_makeup; label values outside 0\.\.13: 6, e\.g'):
    build(tmp_path, source, test_makeup=0, test_non_makeup=0)


@pytest.mark.parametrize(('make', 'why'), [
  (lambda root: None, 'no pictures with and without makeup in it; expected are images/makeup'),
  (lambda root: write(root / 'images' / 'makeup', 1), 'images/makeup is there, but no pictures without makeup beside'),
  (lambda root: write_own(root, 'plain', 'labels/makeup'), 'plain is there, but no pictures with makeup beside it'),
  (lambda root: write(root / 'deep' / 'testB', 1), 'testB is there, but no pictures with makeup beside it'),
  (lambda root: [write_own(root / name) for name in 'ab'], 'more than one set of pictures in it; choose from a and b'),
])  # fmt: skip
def test_what_is_not_laid_out_as_expected(tmp_path, make, why):
  make(tmp_path)
  with pytest.raises(UserError, match=why) as caught:
    makeup_transfer.make_config(source=tmp_path)
  assert '\n' not in str(caught.value)


def test_pictures_without_label_maps(tmp_path):
  source = write_own(tmp_path / 'mine')
  with pytest.raises(UserError, match=r'mine/makeup: no label maps of these pictures; give --labels, or a parser'):
    listed(source)
  (source / 'labels').mkdir()
  with pytest.raises(UserError, match='labels.*no pictures in this folder'):
    listed(source)
  for kind in ('makeup', 'non-makeup'):
    write(source / 'labels' / kind, 3, label_map, first=0 if kind == 'makeup' else 10)
  with pytest.raises(
    UserError, match=r'no label map has the name of a non_makeup picture, such as non-makeup/1; there'
  ):
    listed(source)
  for path in (source / 'makeup').iterdir():
    path.unlink()
  with pytest.raises(UserError, match='mine/makeup: no pictures in this folder'):
    listed(source)


def test_wrong_options(tmp_path):
  mt, ipmnet = write_mt(tmp_path / 'mt'), write_ipmnet(tmp_path / 'ipmnet')
  for options, why in [
    (dict(source=tmp_path / 'no'), 'no such folder'),
    (dict(source=mt, labels=tmp_path / 'no'), 'labels=.*no such folder'),
    (dict(source=mt, label_order='mine'), 'unknown label order'),
    (dict(source=mt, name='a/b'), "name='a/b'"),
    (dict(source=mt, test_makeup=-1), 'test_makeup=-1: must be at least 0'),
    (dict(source=mt, validation=-1), 'validation=-1'),
    (dict(source=mt, count=0), 'count=0'),
    (dict(source=mt, max_side=0), 'max_side=0'),
    (dict(source=ipmnet, test_non_makeup=1), 'test_non_makeup=1: .*ipmnet has its own split; leave it out'),
  ]:
    with pytest.raises(UserError, match=why):
      makeup_transfer.make_config(**options)
  with pytest.raises(UserError, match='validation=3: of the 3 makeup pictures one at least must stay for training'):
    listed(mt, test_makeup=3, test_non_makeup=0, validation=3)
