"""CelebA as users have it (folder, zip, TFDS) becomes the same records, in the official partition."""

import io
import shutil
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxface import labels, pictures
from jaxface.errors import UserError
from jaxface_data.celeba_masks import celeba_masks_dataset_builder as celeba_masks

SPLITS = {'train': range(1, 9), 'validation': range(9, 11), 'test': range(11, 14)}
NUMBERS = [number for numbers in SPLITS.values() for number in numbers]


def jpeg(number):
  """A picture of CelebA's size whose first pixels tell its number."""
  image = np.full((218, 178, 3), 8 * number % 256, np.uint8)
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, 'JPEG', quality=95)
  return buffer.getvalue()


def label_map(number):
  label = np.full((218, 178), labels.BISENET_CLASSES.index('hair'), np.uint8)
  label[:10] = number
  return label


def write_celeba(folder, numbers=NUMBERS, pictures_in='img_align_celeba'):
  (folder / pictures_in).mkdir(parents=True, exist_ok=True)
  for number in numbers:
    (folder / pictures_in / f'{number:06d}.jpg').write_bytes(jpeg(number))
  lines = [f'{number:06d}.jpg {i}' for i, split in enumerate(SPLITS) for number in SPLITS[split]]
  (folder / 'list_eval_partition.txt').write_text('\n'.join(lines) + '\n')
  return folder


@pytest.fixture
def label_folder(tmp_path):
  for number in NUMBERS:
    pictures.write_picture(tmp_path / 'maps' / f'{number:06d}.png', label_map(number))
  return tmp_path / 'maps'


def build(tmp_path, source, **options):
  config = celeba_masks.make_config(source=source, **options)
  builder = celeba_masks.Builder(data_dir=tmp_path / 'prepared', config=config, workers=2)
  builder.download_and_prepare(file_format='array_record')
  return tfds.builder_from_directory(builder.data_dir)


def check_records(builder, with_labels=True):
  table = labels.lookup_table('bisenet')
  for split, numbers in SPLITS.items():
    found = list(builder.as_data_source(split, decoders={'image': tfds.decode.SkipDecoding()}))
    assert [str(record['id'], 'utf8') for record in found] == [f'{number:06d}.jpg' for number in numbers]
    for number, record in zip(numbers, found, strict=True):
      assert record['image'] == jpeg(number)
      if with_labels:
        np.testing.assert_array_equal(record['label'][..., 0], table[label_map(number)])


def test_folder(tmp_path, label_folder):
  builder = build(tmp_path, write_celeba(tmp_path / 'celeba'), labels=label_folder)
  check_records(builder)
  assert builder.info.metadata['skipped'] == {}
  assert builder.info.metadata['picture_sizes'] == {'178x218': 13}


def test_folder_with_the_pictures_themselves_and_a_table(tmp_path):
  source = write_celeba(tmp_path / 'celeba', pictures_in='.')
  text = (source / 'list_eval_partition.txt').read_text().replace(' ', ',')
  (source / 'list_eval_partition.txt').unlink()
  (source / 'list_eval_partition.csv').write_text('image_id,partition\n' + text)
  check_records(build(tmp_path, source), with_labels=False)


@pytest.mark.parametrize('partition_inside', [True, False])
@pytest.mark.parametrize('name_the_folder', [True, False])
def test_zip(tmp_path, label_folder, partition_inside, name_the_folder):
  source = write_celeba(tmp_path / 'celeba')
  with zipfile.ZipFile(source / 'img_align_celeba.zip', 'w') as archive:
    for path in sorted(source.rglob('*.jpg')):
      archive.write(path, path.relative_to(source))
    if partition_inside:
      archive.write(source / 'list_eval_partition.txt', 'list_eval_partition.txt')
  if partition_inside:
    (source / 'list_eval_partition.txt').unlink()
  shutil.rmtree(source / 'img_align_celeba')
  check_records(build(tmp_path, source if name_the_folder else source / 'img_align_celeba.zip', labels=label_folder))


def test_the_official_folders_with_the_pictures_in_the_wild(tmp_path, label_folder):
  source = write_celeba(tmp_path / 'celeba', pictures_in='Img/img_align_celeba')
  (source / 'Img' / 'img_celeba').mkdir()
  for number in NUMBERS:
    (source / 'Img' / 'img_celeba' / f'{number:06d}.jpg').write_bytes(jpeg(number + 1))
  (source / 'Eval').mkdir()
  (source / 'list_eval_partition.txt').rename(source / 'Eval' / 'list_eval_partition.txt')
  with zipfile.ZipFile(tmp_path / 'celeba.zip', 'w') as archive:
    for path in sorted(source.rglob('*.*')):
      archive.write(path, path.relative_to(source))
  check_records(build(tmp_path / 'a', source, labels=label_folder))
  check_records(build(tmp_path / 'b', tmp_path / 'celeba.zip', labels=label_folder))


def test_files_of_one_name_are_refused(tmp_path, label_folder):
  source = write_celeba(tmp_path / 'celeba', pictures_in='a')
  pictures.write_picture(label_folder / 'more' / '000003.png', label_map(3))
  with pytest.raises(UserError, match=r'maps: more than one file is called 000003; leave one of each in it'):
    build(tmp_path, source, labels=label_folder)
  (source / 'b').mkdir()
  (source / 'b' / '000002.jpg').write_bytes(jpeg(9))
  with zipfile.ZipFile(source / 'all.zip', 'w') as archive:
    for path in sorted(source.rglob('*.jpg')):
      archive.write(path, path.relative_to(source))
  for place in (source, source / 'all.zip'):
    with pytest.raises(UserError, match=rf'{place}: more than one file is called 000002\.jpg'):
      build(tmp_path, place)


def packed(tmp_path, method=zipfile.ZIP_DEFLATED):
  source = write_celeba(tmp_path / 'celeba')
  with zipfile.ZipFile(tmp_path / 'celeba.zip', 'w', method) as archive:
    archive.write(source / 'list_eval_partition.txt', 'list_eval_partition.txt')
    for path in sorted(source.rglob('*.jpg')):
      archive.write(path, path.name)
    starts = {info.filename: info.header_offset for info in archive.infolist()}
  return tmp_path / 'celeba.zip', starts


def change_bytes(path, at, new):
  data = bytearray(path.read_bytes())
  data[at : at + len(new)] = new
  path.write_bytes(data)


@pytest.mark.parametrize('method', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_member_of_a_zip_file_is_skipped(tmp_path, method):
  source, starts = packed(tmp_path, method)
  # Behind the 30 bytes of its header and its name.
  change_bytes(source, starts['000002.jpg'] + 30 + len('000002.jpg'), b'\xff' * 9)
  builder = build(tmp_path, source)
  assert builder.info.metadata['skipped'] == {'damaged in the zip file': ['000002.jpg']}
  assert builder.info.splits['train'].num_examples == 7


@pytest.mark.parametrize(('field', 'value'), [(8, b'\x01'), (10, b'\x09')], ids=['encrypted', 'deflate64'])
def test_a_zip_file_that_python_cannot_unpack(tmp_path, field, value):
  source, _ = packed(tmp_path)
  # The last one in the directory at the end.
  change_bytes(source, source.read_bytes().rindex(b'PK\x01\x02') + field, value)
  with pytest.raises(UserError, match=r'celeba\.zip: cannot be unpacked here .*; unpack it, and give the folder'):
    build(tmp_path, source)


@pytest.mark.parametrize('change', [
  lambda lines: b'\xef\xbb\xbf' + b'\n'.join(lines),
  lambda lines: b'"image_id","partition"\r\n' + b''.join(b'"%s","%s"\r\n' % (*line.split(),) for line in lines),
  lambda lines: b'\n'.join([*lines, b'caf\xe9']),
], ids=['byte order mark', 'quotes', 'latin-1'])  # fmt: skip
def test_partitions_as_editors_save_them(tmp_path, change):
  source = write_celeba(tmp_path / 'celeba')
  path = source / 'list_eval_partition.txt'
  path.write_bytes(change(path.read_bytes().splitlines()))
  builder = build(tmp_path, source)
  check_records(builder, with_labels=False)
  assert builder.info.metadata['skipped'] == {}


def test_a_partition_in_another_form(tmp_path):
  source = write_celeba(tmp_path / 'celeba')
  path = source / 'list_eval_partition.txt'
  text = path.read_text()
  numbered = ''.join(f'{i},{line.replace(" ", ",")}\n' for i, line in enumerate(text.splitlines()))
  for data in (numbered.encode(), text.encode('utf-16')):
    path.write_bytes(data)
    with pytest.raises(UserError, match=r'partition\.txt: no line of the partition is understood; they go as'):
      build(tmp_path, source)


# TFDS's own celeb_a downloads; this one has its name, its keys and its order.
class CelebA(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A small `celeb_a`."""

  name = 'celeb_a'
  VERSION = tfds.core.Version('2.1.0')

  def _info(self):
    features = {'image': tfds.features.Image(encoding_format='jpeg'), 'attributes': {'Bald': np.bool_}}
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(numbers) for split, numbers in SPLITS.items()}

  def _generate_examples(self, numbers):
    for number in numbers:
      yield f'{number:06d}.jpg', {'image': jpeg(number), 'attributes': {'Bald': True}}


def test_celeb_a_prepared_by_tfds(tmp_path, label_folder, monkeypatch):
  CelebA(data_dir=tmp_path / 'tfds').download_and_prepare(file_format='array_record')
  # TFDS imports it to write such a dataset; in a process that only reads one it is not there.
  monkeypatch.delattr(tfds.core, 'hashing', raising=False)
  with pytest.raises(UserError, match='split train has 8 pictures, CelebA has 162770'):
    build(tmp_path, tmp_path / 'tfds', labels=label_folder)
  ranges = {split: (numbers[0], numbers[-1]) for split, numbers in SPLITS.items()}
  monkeypatch.setattr(celeba_masks, 'OFFICIAL_RANGES', ranges)
  check_records(build(tmp_path, tmp_path / 'tfds', labels=label_folder))


def test_a_dataset_of_another_order_is_not_taken_for_celeb_a(tmp_path, label_folder, monkeypatch):
  ranges = {split: (numbers[0], numbers[-1]) for split, numbers in SPLITS.items()}
  monkeypatch.setattr(celeba_masks, 'OFFICIAL_RANGES', ranges)
  builder = build(tmp_path / 'first', write_celeba(tmp_path / 'celeba'))
  # Ours is in the order of the numbers: label maps would go to other pictures than theirs.
  with pytest.raises(UserError, match=r'the dataset celeba_masks; give the celeb_a of TFDS, or the pictures'):
    build(tmp_path / 'second', builder.data_path, labels=label_folder)


def test_official_ranges_have_the_official_sizes():
  sizes = {split: last - first + 1 for split, (first, last) in celeba_masks.OFFICIAL_RANGES.items()}
  assert sizes == {'train': 162_770, 'validation': 19_867, 'test': 19_962}
  # One begins where the other has ended.
  firsts = {split: first for split, (first, _) in celeba_masks.OFFICIAL_RANGES.items()}
  assert firsts == {'train': 1, 'validation': 162_771, 'test': 182_638}


def test_what_is_missing_is_counted(tmp_path, label_folder):
  source = write_celeba(tmp_path / 'celeba', [*NUMBERS[1:], 99])
  (label_folder / '000002.png').unlink()
  (source / 'img_align_celeba' / '000003.jpg').write_bytes(jpeg(3)[:-40])
  builder = build(tmp_path, source, labels=label_folder)
  assert builder.info.metadata['skipped'] == {
    'in the partition, but not in the source': ['000001.jpg'],
    'not in the partition': ['000099.jpg'],
    'no label map': ['000002.jpg'],
    'damaged or truncated': ['000003.jpg'],
  }
  assert builder.info.splits['train'].num_examples == 5


def test_dangling_links_are_skipped(tmp_path, label_folder):
  source = write_celeba(tmp_path / 'celeba', NUMBERS[1:])
  (source / 'img_align_celeba' / '000001.jpg').symlink_to('nowhere.jpg')
  (label_folder / '000002.png').unlink()
  (label_folder / '000002.png').symlink_to('nowhere.png')
  builder = build(tmp_path, source, labels=label_folder)
  assert builder.info.metadata['skipped'] == {'no such file': ['000001.jpg', '000002.jpg']}


def test_count_is_for_each_split(tmp_path):
  builder = build(tmp_path, write_celeba(tmp_path / 'celeba'), count=2)
  assert {name: split.num_examples for name, split in builder.info.splits.items()} == dict.fromkeys(SPLITS, 2)


def test_sources_that_are_not_celeba(tmp_path, label_folder):
  source = write_celeba(tmp_path / 'celeba')
  (tmp_path / 'bad.zip').write_bytes(b'half a download')
  other = tmp_path / 'other'
  shutil.copytree(source, other)
  (other / 'list_eval_partition.txt').write_text('a.jpg 0\n')
  bare = tmp_path / 'bare'
  shutil.copytree(source / 'img_align_celeba', bare / 'img_align_celeba')
  for path in label_folder.iterdir():
    path.rename(path.with_name('x' + path.name))
  for options, why in [
    (dict(source=tmp_path / 'no'), 'no such folder or zip file'),
    (dict(source=tmp_path / 'bad.zip'), 'not a zip file, or an incomplete one'),
    (dict(source=bare), 'list_eval_partition.txt is missing'),
    (dict(source=other), 'no picture of the partition'),
    (dict(source=source, labels=label_folder), r'000001\.jpg would need 000001\.png; there is x000001\.png'),
    (dict(source=source, count=0), 'count=0'),
  ]:
    with pytest.raises(UserError, match=why):
      build(tmp_path, **options)
