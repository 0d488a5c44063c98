"""The parser in use: any size in, the same size out, the network's own answer; files complete, named, accounted for."""

import argparse
import functools
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxface import labels, parse, parsing, pictures, resize, workdir
from jaxface.checkpoint import Checkpoints
from jaxface.cli import load_config
from jaxface.errors import UserError
from jaxface.models.bisenet import normalise
from jaxface.prepare import prepare
from jaxface.runs import engine_for
from jaxface.state import TrainState
from tests.smoke import REPOSITORY, smoke_config


@pytest.fixture(scope='module', autouse=True)
def small_buckets():
  """Small pictures, yet all that happens to large ones."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(parsing, 'BUCKETS', (32, 64))
    yield


def _config():
  config = load_config(f'{REPOSITORY / "experiments" / "bisenet.py"}:synthetic,smoke', [])
  config.model.label_order = 'bisenet'
  return config


@pytest.fixture(scope='module')
def task():
  return engine_for(_config()).task


@pytest.fixture(scope='module')
def state(task) -> TrainState:
  """A network whose weights were drawn, not trained: its label maps are many-coloured."""
  rng = np.random.default_rng(0)

  def fill(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if name.endswith('kernel'):
      values = rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape)
    else:
      values = np.full(leaf.shape, 1 if name.endswith(('scale', 'var')) else 0)
    return jnp.asarray(values, leaf.dtype)

  # To compile the real initialisation takes ten times as long as the rest.
  return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(task.init, jax.random.key(0)))


@pytest.fixture(scope='module')
def parser_workdir(state, tmp_path_factory) -> Path:
  folder = tmp_path_factory.mktemp('parser')
  workdir.open_run(folder, _config())
  with Checkpoints(folder) as checkpoints:
    checkpoints.save(7, state, next_batch=0, fingerprint=None)
  return folder


@pytest.fixture(scope='module')
def parser(parser_workdir) -> parsing.Parser:
  return parsing.load_parser(parser_workdir)


@pytest.fixture(autouse=True)
def one_parser(parser, parser_workdir, monkeypatch):
  """Commands that open this workdir get the parser that is compiled already."""
  load = parsing.load_parser
  opened = lambda path, checkpoint='best': parser if Path(path) == parser_workdir else load(path, checkpoint)
  monkeypatch.setattr(parsing, 'load_parser', opened)


def photo(seed, height, width):
  """A smooth picture, for which a parser's classes form regions."""
  rough = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), np.uint8)
  return np.asarray(Image.fromarray(rough).resize((width, height), Image.BICUBIC))


SIZES = ((32, 32), (20, 31), (64, 50), (33, 10), (1, 1), (40, 64), (17, 64), (64, 64), (5, 60))


@pytest.fixture(scope='module')
def photos():
  return [photo(i, height, width) for i, (height, width) in enumerate(SIZES)]


@pytest.fixture(scope='module')
def expected(task, state, photos):
  """Label maps the public code's way: pictures squashed to the network's size, scores resized, the best class."""
  squashed = np.stack([np.asarray(Image.fromarray(image).resize((32, 32), Image.BILINEAR)) for image in photos])
  variables = {'params': state.params, 'batch_stats': state.model_state}
  scores = jax.jit(task.model.apply)(variables, normalise(jnp.asarray(squashed) / 255)).main
  enlarge = jax.jit(functools.partial(resize.bilinear, align_corners=False), static_argnums=1)
  resized = [np.asarray(enlarge(s[None], i.shape[:2])[0]) for s, i in zip(np.asarray(scores), photos, strict=True)]
  return [labels.lookup_table('bisenet')[np.argmax(scores, -1)] for scores in resized]


def test_label_maps_are_the_networks_at_the_pictures_sizes(parser, photos, expected):
  found = parser(photos)
  assert parser.batch_size == jax.device_count() == 8
  for image, label, reference in zip(photos, found, expected, strict=True):
    assert label.dtype == np.uint8
    assert label.shape == image.shape[:2]
    # Scores that tie but for the last bits may fall either way.
    assert (label != reference).mean() < 0.005
  assert len(np.unique(np.concatenate([label.ravel() for label in found]))) > 3


def test_large_pictures_are_parsed_at_the_largest_bucket_and_enlarged(parser):
  image = photo(3, 128, 96)
  shrunk = parser.shrunk(image)
  (large,), (small,) = parser([image]), parser.parse_shrunk([shrunk], [(64, 48)])
  np.testing.assert_array_equal(large, small.repeat(2, 0).repeat(2, 1))


def test_what_is_compiled_does_not_depend_on_the_number_of_sizes(parser, photos):
  parser(photos)
  for height in range(1, 64, 7):
    parser([photo(0, height, 64 - height)])
  assert parser._scores._cache_size() == 1
  assert parser._label_maps._cache_size() <= len(parsing.BUCKETS) ** 2


def test_neighbours_in_the_batch_and_other_threads_change_nothing(parser, photos):
  together = parser(photos)
  with ThreadPoolExecutor(4) as executor:
    alone = list(executor.map(lambda image: parser([image])[0], photos))
  for one, other in zip(alone, together, strict=True):
    np.testing.assert_array_equal(one, other)
  assert parser([]) == []


def test_identity_names_all_that_matters(parser, task, state):
  variables = {'params': state.params, 'batch_stats': state.model_state}
  other = jax.tree.map(lambda leaf: leaf, variables)
  other['params']['head']['classes']['kernel'] = other['params']['head']['classes']['kernel'].at[0, 0, 0, 0].add(1e-3)

  def identity(variables=variables, image_size=32, label_order='bisenet'):
    return parsing.Parser(task.model, variables, image_size=image_size, label_order=label_order).identity

  assert identity() == parser.identity
  different = {identity(), identity(other), identity(image_size=64), identity(label_order='celebamask_hq')}
  assert len(different) == 4
  assert parser.origin['name'].endswith(', step 7')
  assert json.loads(json.dumps(parser.origin)) == parser.origin


def test_a_workdir_of_another_system(tmp_path):
  workdir.open_run(tmp_path, smoke_config('mask_l1'))
  with pytest.raises(UserError, match=r"is a run of task 'vae'; a parser is one of task 'parsing': train it by"):
    parsing.load_parser(tmp_path)
  with pytest.raises(UserError, match='holds no run'):
    parsing.load_parser(tmp_path / 'nothing')


def run(*words):
  arguments = argparse.ArgumentParser()
  parse.register(arguments.add_subparsers())
  args = arguments.parse_args(['parse', *map(str, words)])
  return args.run(args)


def files(folder):
  return sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file())


@pytest.fixture
def folder(tmp_path, photos):
  """Nine pictures of other sizes, one of them broken, one below, and one that is named as another."""
  folder = tmp_path / 'photos'
  for i, image in enumerate(photos[:6]):
    pictures.write_picture(folder / f'{i}.png', image)
  pictures.write_picture(folder / 'more' / '0.png', photos[6])
  pictures.write_picture(folder / '0.jpg', photos[7])
  (folder / 'broken.png').write_bytes(b'no picture')
  return folder


def test_parse_writes_label_maps_overlays_and_masks(folder, tmp_path, parser, parser_workdir, capsys):
  out = tmp_path / 'out'
  assert run('--parser', parser_workdir, '--images', folder, '--out', out, '--overlay', '--mask', '--workers', 2) == 0
  names = ['0.jpg', '0.png', '1', '2', '3', '4', '5', 'more/0']
  assert files(out / 'labels') == files(out / 'masks') == [f'{name}.png' for name in names]
  assert files(out / 'overlays') == [f'{name}.jpg' for name in names]
  assert len(files(out)) == 3 * len(names)
  for name in names:
    source = folder / (name if '.' in name else f'{name}.png')
    image = pictures.read_picture(source)
    (label,) = parser([image])
    with Image.open(out / 'labels' / f'{name}.png') as written:
      assert written.mode == 'P'
      np.testing.assert_array_equal(np.asarray(written), label)
      np.testing.assert_array_equal(np.asarray(written.convert('RGB')), labels.PALETTE[label])
    mask = pictures.read_label_map(out / 'masks' / f'{name}.png')
    np.testing.assert_array_equal(mask, labels.FACE[label] * 255)
    assert pictures.read_picture(out / 'overlays' / f'{name}.jpg').shape == image.shape
  said = capsys.readouterr().out
  for part in (f'parsed 8 pictures into {out}', parser.identity, '1 not a picture in a known format', 'broken.png'):
    assert part in said
  assert '2 with the name of another picture' in said


def test_parsed_again_from_a_folder_that_holds_the_results(folder, parser_workdir):
  first = parse.parse(parser_workdir, [folder], folder / 'out', overlay=True)
  again = parse.parse(parser_workdir, [folder], folder / 'out')
  assert (first.parsed, again.parsed) == (8, 8)
  with pytest.raises(UserError, match='no pictures in it but those in --out'):
    parse.parse(parser_workdir, [folder / 'out'], folder / 'out')


def test_label_maps_of_parse_are_what_prepare_takes(folder, tmp_path, parser, parser_workdir):
  (folder / '0.jpg').unlink()
  parse.parse(parser_workdir, [folder], tmp_path / 'out')
  data_dir = tmp_path / 'data'
  by_files = prepare('face_folder', data_dir=data_dir, source=folder, labels=tmp_path / 'out' / 'labels', name='files')
  by_parser = prepare('face_folder', data_dir=data_dir, source=folder, parser=parser_workdir, name='parser')
  assert by_files.splits == by_parser.splits
  assert by_parser.skipped == {'not a picture in a known format': ['broken.png']}
  first, second = (tfds.builder_from_directory(made.path).as_data_source('train') for made in (by_files, by_parser))
  for one, other in zip(first, second, strict=True):
    assert one['id'] == other['id']
    np.testing.assert_array_equal(one['label'], other['label'])
    np.testing.assert_array_equal(one['label'][..., 0], parser([one['image']])[0])
  metadata = json.loads((by_parser.path / 'metadata.json').read_text())
  assert metadata['parser'] == parser.origin
  assert metadata['options']['parser'] == parser.identity == by_parser.parser


def test_nothing_half_written_where_writing_fails(folder, tmp_path, parser_workdir, monkeypatch):
  def full(self, file, *args, **options):
    Path(file).write_bytes(b'half')
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(Image.Image, 'save', full)
  with pytest.raises(UserError, match=r'cannot write .*No space left'):
    parse.parse(parser_workdir, [folder], tmp_path / 'out')
  assert files(tmp_path / 'out') == []


def test_wrong_input(tmp_path, parser_workdir):
  (tmp_path / 'a.png').write_bytes(b'')
  (tmp_path / 'b.png').write_bytes(b'text')
  with pytest.raises(UserError, match=r'not one of 2 pictures can be read; empty file: 1, e\.g\. .*a\.png; not a pict'):
    parse.parse(parser_workdir, [tmp_path], tmp_path / 'out')
  with pytest.raises(UserError, match='no such file'):
    parse.parse(parser_workdir, [tmp_path / 'no'], tmp_path / 'out')
  with pytest.raises(UserError, match='workers=0'):
    parse.parse(parser_workdir, [tmp_path], tmp_path / 'out', workers=0)


def test_names_of_outputs():
  found = {
    'x/a.jpg': 'a.jpg', 'x/a.png': 'a.png', 'x/b.jpg': 'b.jpg', 'x/B.JPG': 'B.JPG', 'y/a.png': 'a.png',
    'x/c/a.jpg': 'c/a.jpg', 'x/a.jpg.png': 'a.jpg.png',
  }  # fmt: skip
  names = parse.output_names({Path(path): PurePath(name) for path, name in found.items()})
  assert [name.as_posix() for name in names.values()] == [
    'a.jpg.2', 'a.png', 'b.jpg', 'B.JPG.2', 'a.png.2', 'c/a', 'a.jpg'
  ]  # fmt: skip


def test_an_overlay_is_half_the_colours_and_all_of_the_background():
  image = np.full((1, 2, 3), 100, np.uint8)
  shown = parse.overlaid(image, np.uint8([[0, 1]]))
  np.testing.assert_array_equal(shown[0, 0], 100)
  np.testing.assert_allclose(shown[0, 1], 50 + labels.PALETTE[1] / 2, atol=0.5)


def test_the_parser_is_the_checkpoint_that_is_asked_for(folder, tmp_path, monkeypatch):
  def load(workdir, checkpoint):
    raise UserError(f'{checkpoint} of {workdir}')

  monkeypatch.setattr('jaxface.parsing.load_parser', load)
  with pytest.raises(UserError, match='7 of parser'):
    run('--parser', 'parser', '--images', folder, '--out', tmp_path / 'out', '--checkpoint', '7')
