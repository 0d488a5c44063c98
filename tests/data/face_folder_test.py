"""A folder of pictures becomes records: original bytes, checked label maps, splits, an account of what was skipped."""

import io
import os

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxface import labels, pictures
from jaxface.errors import UserError
from jaxface_data import base
from jaxface_data.face_folder import face_folder_dataset_builder as face_folder


def picture(seed, size=(20, 16)):
  return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def label_map(size=(20, 16)):
  return (np.arange(size[0])[:, None] % 19).repeat(size[1], 1).astype(np.uint8)


def write_set(folder, names, labels_for=()):
  for seed, name in enumerate(names):
    pictures.write_picture(folder / 'images' / name, picture(seed))
  for name in labels_for:
    pictures.write_picture((folder / 'labels' / name).with_suffix('.png'), label_map())


def build(tmp_path, parser=None, **options):
  config = face_folder.make_config(source=tmp_path / 'images', name='mine', **options)
  builder = face_folder.Builder(data_dir=tmp_path / 'prepared', config=config, parser=parser, workers=2)
  builder.download_and_prepare(file_format='array_record')
  return tfds.builder_from_directory(builder.data_dir)


def records(builder, raw=False):
  decoders = {'image': tfds.decode.SkipDecoding()} if raw else None
  sources = {split: builder.as_data_source(split, decoders=decoders) for split in builder.info.splits}
  return {split: {str(r['id'], 'utf8'): r for r in source} for split, source in sources.items()}


def test_pictures_and_label_maps_come_back(tmp_path):
  names = ['2.png', '10.png', 'more/1.png']
  write_set(tmp_path, names, names)
  builder = build(tmp_path, labels=tmp_path / 'labels')
  train = records(builder)['train']
  assert list(train) == names
  for seed, name in enumerate(names):
    np.testing.assert_array_equal(train[name]['image'], picture(seed))
    np.testing.assert_array_equal(train[name]['label'][..., 0], label_map())
  metadata = builder.info.metadata
  assert metadata['skipped'] == {}
  assert metadata['picture_sizes'] == {'16x20': 3}


def test_bisenet_order_is_remapped_by_name(tmp_path):
  write_set(tmp_path, ['a.png'], ['a.png'])
  record = records(build(tmp_path, labels=tmp_path / 'labels', label_order='bisenet'))['train']['a.png']
  names = np.array(labels.CLASSES)[record['label'][:19, 0, 0]]
  assert tuple(names) == labels.BISENET_CLASSES


def test_plain_files_are_stored_byte_for_byte_and_others_upright_as_png(tmp_path):
  folder = tmp_path / 'images'
  write_set(tmp_path, ['a.jpg', 'b.png'])
  exif = Image.Exif()
  exif[0x0112] = 6
  Image.fromarray(picture(0)).save(folder / 'c.jpg', exif=exif)
  Image.fromarray(picture(0)).convert('L').save(folder / 'd.jpg')
  Image.fromarray(picture(0)).save(folder / 'e.bmp')
  stored = records(build(tmp_path), raw=True)['train']
  decoded = records(tfds.builder_from_directory(tmp_path / 'prepared/face_folder/mine/1.0.0'))['train']
  for name, record in stored.items():
    same = record['image'] == (folder / name).read_bytes()
    assert same == (name in ('a.jpg', 'b.png')), name
    assert Image.open(io.BytesIO(record['image'])).mode == 'RGB'
    # OpenCV, which decodes here, and Pillow differ by rounding in JPEG.
    difference = decoded[name]['image'].astype(int) - pictures.read_picture(folder / name)
    assert np.abs(difference).max() <= (4 if name == 'a.jpg' else 0), name
  assert decoded['c.jpg']['image'].shape == (16, 20, 3)
  assert 'label' not in decoded['a.jpg']
  assert not tfds.builder_from_directory(tmp_path / 'prepared/face_folder/mine/1.0.0').info.metadata[
    'label_order_doubtful'
  ]


def test_what_cannot_be_used_is_skipped_and_counted(tmp_path):
  write_set(tmp_path, [f'{i}.png' for i in range(8)], [f'{i}.png' for i in range(7)])
  (tmp_path / 'images' / '1.png').write_bytes(b'')
  data = (tmp_path / 'images' / '2.png').read_bytes()
  (tmp_path / 'images' / '2.png').write_bytes(data[: len(data) // 2])
  pictures.write_picture(tmp_path / 'labels' / '3.png', label_map((16, 20)))
  pictures.write_picture(tmp_path / 'labels' / '4.png', label_map() + 1)
  pictures.write_picture(tmp_path / 'labels' / '5.png', picture(0))
  builder = build(tmp_path, labels=tmp_path / 'labels')
  assert list(records(builder)['train']) == ['0.png', '6.png']
  assert builder.info.metadata['skipped'] == {
    'no label map': ['7.png'],
    'empty file': ['1.png'],
    'damaged or truncated': ['2.png'],
    'size mismatch': ['3.png'],
    'label values outside 0..18': ['4.png'],
    'a label map must have a single channel': ['5.png'],
  }


def test_label_map_of_another_size_but_the_same_shape_is_resized():
  # Half-pixel centres: an output pixel takes the input pixel which its centre lies in.
  label = np.arange(12, dtype=np.uint8).reshape(3, 4)
  larger = base.resize_nearest(label, (6, 8))
  np.testing.assert_array_equal(larger, label.repeat(2, 0).repeat(2, 1))
  smaller = base.resize_nearest(np.arange(9, dtype=np.uint8)[None].repeat(9, 0), (3, 3))
  np.testing.assert_array_equal(smaller, [[1, 4, 7]] * 3)


@pytest.mark.parametrize(('size', 'agrees'), [
  ((512, 512), False), ((40, 32), True), ((10, 8), True), ((41, 32), True), ((44, 32), False), ((16, 20), False),
])  # fmt: skip
def test_aspect_ratio_of_label_maps(tmp_path, size, agrees):
  pictures.write_picture(tmp_path / 'a.png', np.full(size, 3, np.uint8))
  if agrees:
    label = base.checked_label(tmp_path / 'a.png', 'celebamask_hq', (20, 16))
    np.testing.assert_array_equal(label, np.full((20, 16), 3))
  else:
    with pytest.raises(pictures.PictureError, match='size mismatch'):
      base.checked_label(tmp_path / 'a.png', 'celebamask_hq', (20, 16))


@pytest.mark.parametrize('written', labels.ORDERS)
@pytest.mark.parametrize('said', labels.ORDERS)
def test_a_wrong_label_order_is_noticed(tmp_path, written, said):
  write_set(tmp_path, ['a.png', 'b.png'])
  for name in ('a.png', 'b.png'):
    rows = ['background', 'hair', 'skin', 'l_brow', 'l_eye', 'nose', 'u_lip', 'mouth', 'l_lip', 'neck']
    rows = [labels.ORDERS[written].index(row) for row in rows for _ in range(2)]
    pictures.write_picture(tmp_path / 'labels' / name, np.array(rows, np.uint8)[:, None].repeat(16, 1))
  if said == 'makeup_transfer' and written != said:
    with pytest.raises(UserError, match='label values outside 0..13: 2'):
      build(tmp_path, labels=tmp_path / 'labels', label_order=said)
  else:
    builder = build(tmp_path, labels=tmp_path / 'labels', label_order=said)
    assert builder.info.metadata['label_order_doubtful'] == (written != said)


def test_every_ninth_and_tenth_of_ten(tmp_path):
  write_set(tmp_path, [f'{i}.png' for i in range(20)])
  split = {name: list(found) for name, found in records(build(tmp_path)).items()}
  assert split['validation'] == ['8.png', '18.png']
  assert split['test'] == ['9.png', '19.png']
  assert split['train'] == [f'{i}.png' for i in range(20) if i % 10 < 8]


def test_a_missing_label_map_moves_no_other_picture_to_another_split(tmp_path):
  names = [f'{i}.png' for i in range(10)]
  write_set(tmp_path, names, names[1:])
  split = records(build(tmp_path, labels=tmp_path / 'labels'))
  assert list(split['validation']) == ['8.png']
  assert list(split['test']) == ['9.png']


def test_folders_named_for_splits(tmp_path):
  names = ['test/a.png', 'train/a.png', 'train/deep/b.png', 'val/a.png', 'lost.png']
  write_set(tmp_path, names)
  builder = build(tmp_path)
  assert {name: list(found) for name, found in records(builder).items()} == {
    'train': ['train/a.png', 'train/deep/b.png'],
    'validation': ['val/a.png'],
    'test': ['test/a.png'],
  }
  assert builder.info.metadata['skipped'] == {'outside the folders train, validation and test': ['lost.png']}


def test_count_and_max_side(tmp_path):
  write_set(tmp_path, [f'{i}.png' for i in range(12)], [f'{i}.png' for i in range(12)])
  builder = build(tmp_path, labels=tmp_path / 'labels', count=2, max_side=5)
  split = records(builder)
  assert {name: list(found) for name, found in split.items()} == {
    'train': ['0.png', '1.png'], 'validation': ['8.png'], 'test': ['9.png'],
  }  # fmt: skip
  record = split['train']['1.png']
  area_means = picture(1).reshape(5, 4, 4, 4, 3).mean((1, 3))
  np.testing.assert_allclose(record['image'], area_means, atol=0.51)
  np.testing.assert_array_equal(record['label'][..., 0], label_map()[2::4, 2::4])


def test_many_shards_keep_the_order_and_empty_ones_do_no_harm(tmp_path, monkeypatch):
  monkeypatch.setattr(base, '_SHARD_BYTES', 2000)
  names = [f'train/{i}.png' for i in range(30)]
  write_set(tmp_path, names)
  for name in names[10:20]:
    (tmp_path / 'images' / name).write_bytes(b'no picture' * 100)
  builder = build(tmp_path)
  lengths = builder.info.splits['train'].shard_lengths
  assert len(lengths) > 5
  assert 0 in lengths
  assert list(records(builder)['train']) == names[:10] + names[20:]


def test_a_split_without_usable_pictures_is_left_out(tmp_path):
  write_set(tmp_path, ['train/a.png', 'test/a.png'])
  (tmp_path / 'images/test/a.png').write_bytes(b'')
  builder = build(tmp_path)
  assert list(builder.info.splits) == ['train']
  assert not list((tmp_path / 'prepared').rglob('*test*record*'))


def test_a_parser_makes_the_label_maps(tmp_path):
  names = [f'train/{i}.png' for i in range(40)]
  write_set(tmp_path, names)
  (tmp_path / 'images' / names[3]).write_bytes(b'')
  batches = []

  def parser(images):
    batches.append(len(images))
    return [image[..., 0] % 19 for image in images]

  builder = build(tmp_path, parser=parser)
  found = records(builder)['train']
  assert sum(batches) == len(found) == 39
  assert max(batches) > 1
  for record in found.values():
    np.testing.assert_array_equal(record['label'][..., 0], record['image'][..., 0] % 19)


def test_nothing_usable_is_an_error_that_says_why(tmp_path):
  write_set(tmp_path, ['a.png'])
  (tmp_path / 'images' / 'a.png').write_bytes(b'')
  with pytest.raises(UserError, match=r'not one usable picture; empty file: 1, e\.g\. a\.png'):
    build(tmp_path)
  assert not list((tmp_path / 'prepared').rglob('dataset_info.json'))


def test_label_maps_that_pair_with_no_picture(tmp_path):
  write_set(tmp_path, ['a.png'], ['b.png'])
  with pytest.raises(UserError, match=r'picture a\.png would need a\.png; there is b\.png'):
    build(tmp_path, labels=tmp_path / 'labels')


def test_only_pngs_are_label_maps(tmp_path):
  write_set(tmp_path, ['a.png'])
  pictures.write_picture(tmp_path / 'labels' / 'a.jpg', label_map())
  with pytest.raises(UserError, match='no PNGs in this folder'):
    build(tmp_path, labels=tmp_path / 'labels')
  pictures.write_picture(tmp_path / 'labels' / 'a.png', label_map())
  Image.fromarray(picture(0)).save(tmp_path / 'labels' / 'a.webp')
  assert list(records(build(tmp_path, labels=tmp_path / 'labels'))['train']) == ['a.png']


def test_label_maps_inside_the_source_are_no_pictures(tmp_path):
  write_set(tmp_path, ['a.png'])
  pictures.write_picture(tmp_path / 'images' / 'labels' / 'a.png', label_map())
  builder = build(tmp_path, labels=tmp_path / 'images' / 'labels')
  assert list(records(builder)['train']) == ['a.png']


def test_label_maps_in_a_folder_above_the_source(tmp_path):
  write_set(tmp_path, ['a.jpg', 'b.png'])
  pictures.write_picture(tmp_path / 'a.png', label_map())
  builder = build(tmp_path, labels=tmp_path)
  assert list(records(builder)['train']) == ['a.jpg']
  assert builder.info.metadata['skipped'] == {'no label map': ['b.png']}


def test_label_maps_beside_the_pictures(tmp_path):
  folder = tmp_path / 'images'
  write_set(tmp_path, ['a.jpg', 'b.png', 'c/a.jpg', 'd.jpg'])
  for name in ('a.png', 'c/a.PNG'):
    pictures.write_picture(folder / name, label_map())
  builder = build(tmp_path, labels=folder)
  found = records(builder)['train']
  assert list(found) == ['a.jpg', 'c/a.jpg']
  for record in found.values():
    np.testing.assert_array_equal(record['label'][..., 0], label_map())
  assert builder.info.metadata['skipped'] == {'no label map': ['b.png', 'd.jpg']}


def test_no_label_maps_beside_the_pictures(tmp_path):
  write_set(tmp_path, ['a.png', 'b.png'])
  with pytest.raises(UserError, match=r'labels=.*images.: no label maps beside the pictures, .*; leave --labels out'):
    build(tmp_path, labels=tmp_path / 'images')


def test_a_png_without_its_end_is_stored_whole(tmp_path):
  write_set(tmp_path, ['a.png'])
  path = tmp_path / 'images' / 'a.png'
  path.write_bytes(path.read_bytes()[:-12])
  # TFDS decodes with OpenCV, which gives nothing for a PNG as it lies there.
  np.testing.assert_array_equal(records(build(tmp_path))['train']['a.png']['image'], picture(0))


def test_dangling_links_are_skipped(tmp_path):
  write_set(tmp_path, ['a.png', 'b.png'], ['a.png', 'c.png'])
  (tmp_path / 'images' / 'c.png').symlink_to('nowhere.png')
  (tmp_path / 'labels' / 'b.png').symlink_to('nowhere.png')
  builder = build(tmp_path, labels=tmp_path / 'labels')
  assert list(records(builder)['train']) == ['a.png']
  assert builder.info.metadata['skipped'] == {'no such file': ['b.png', 'c.png']}
  config = face_folder.make_config(source=tmp_path / 'images', labels=tmp_path / 'labels')
  assert face_folder.Builder(config=config).listing.digest()


def test_names_that_are_not_utf8_are_skipped(tmp_path):
  write_set(tmp_path, ['a.png', 'b.png', 'c.png'], ['a.png', 'b.png'])
  for number, (name, folders) in enumerate([('b.png', ('images', 'labels')), ('c.png', ('images',))]):
    for folder in folders:
      path = tmp_path / folder / name
      path.rename(path.with_name(os.fsdecode(b'%d\xe9.png' % number)))
  builder = build(tmp_path, labels=tmp_path / 'labels')
  assert list(records(builder)['train']) == ['a.png']
  assert builder.info.metadata['skipped'] == {
    'no label map': [r'1\xe9.png'],
    'a name that is not UTF-8': [r'0\xe9.png'],
  }


def test_wrong_options(tmp_path):
  write_set(tmp_path, ['a.png'])
  source = tmp_path / 'images'
  for options, why in [
    (dict(source=tmp_path / 'no'), 'no such folder'),
    (dict(source=source / 'a.png'), 'not a folder'),
    (dict(source=source, labels=tmp_path / 'no'), 'labels=.*no such folder'),
    (dict(source=source, label_order='mine'), 'unknown label order'),
    (dict(source=source, name='a/b'), "name='a/b'"),
    (dict(source=source, count=0), 'count=0'),
    (dict(source=source, max_side=-1), 'max_side=-1'),
  ]:
    with pytest.raises(UserError, match=why):
      face_folder.make_config(**options)


def test_the_short_side_of_what_shrinks_is_rounded():
  # 5.85 pixels; cut off, the picture would be squeezed.
  assert base.shrink(np.zeros((20, 13, 3), np.uint8), 9).shape == (9, 6, 3)
