"""`jaxface makeup`: what it writes for one photo and for many, what it computes, and one clear line for wrong input."""

import dataclasses
import functools
from pathlib import Path
from types import SimpleNamespace

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import device_map, labels, makeup, parsing, pictures, runs
from jaxface.augment import Framing
from jaxface.cli import main
from jaxface.tasks import make_task
from jaxface.tasks.makeup import MakeupTask
from tests.smoke import experiment

_RUN = 'some/run'
_SEEN, _SIZE = 24, 32  # Of the network: what it sees, of pictures of which size.
_CELL = 4 * _SEEN + 2  # On a figure, where small pictures are enlarged.
_COLOURS = {'green': (30, 220, 60), 'red': (230, 40, 30)}
_TARGETS = {'a': (60, 50), 'b': (80, 64)}


@dataclasses.dataclass(frozen=True)
class Tint(MakeupTask):
  """In the place of a network: draws everything darker, and adds the mean colour of the reference's skin."""

  def code(self, state, reference):
    skin = (reference.label == labels.index('skin')).astype(jnp.float32)[..., None]
    return (reference.image * skin).sum((1, 2)) / skin.sum((1, 2)) * state['strength']

  def wear(self, state, target, code, level=None):
    return 0.8 * target.image - 0.1 + 0.3 * level[:, None, None, None] * code[:, None, None, :]


_TASK = Tint(Framing(_SEEN), _SIZE)
_BOUND = {function: functools.partial(function, _TASK) for function in (makeup._code, makeup._wear)}


@pytest.fixture(autouse=True)
def opened(monkeypatch):
  """Runs by the names of their folders: 'strong' one tints twice as much; 'vae' one is none of ours."""

  def load(workdir, checkpoint):
    task = object() if workdir.name == 'vae' else _TASK
    strength = 2.0 if workdir.name == 'strong' else 1.0
    return SimpleNamespace(
      config=SimpleNamespace(task=workdir.name),
      engine=SimpleNamespace(task=task),
      state={'strength': np.float32(strength)},
    )

  monkeypatch.setattr(runs, 'load_run', load)
  # `map_batches` compiles for a function, and a new one for every command would take as long as the rest.
  monkeypatch.setattr(makeup, 'functools', SimpleNamespace(partial=lambda function, _: _BOUND[function]))


@pytest.fixture
def computed(monkeypatch):
  """How many codes and transfers were computed."""
  counts = {2: 0, 4: 0}

  def counting(function, variables, batches, batch_size):
    def counted():
      for batch in batches:
        counts[len(batch[0])] += len(batch)
        yield batch

    return map_batches(function, variables, counted(), batch_size)

  map_batches = device_map.map_batches
  monkeypatch.setattr(device_map, 'map_batches', counting)
  return counts


def _label(size: tuple[int, int], faces: int = 1) -> np.ndarray:
  label = np.zeros(size, np.uint8)
  for i in range(faces):
    centre = ((2 * i + 1) * size[1] // (2 * faces), size[0] // 2)
    axes = (size[1] // (4 * faces), size[0] // 3)
    cv2.ellipse(label, centre, axes, 0, 0, 360, labels.index('skin'), -1)
  return label


@pytest.fixture(scope='module')
def photos(tmp_path_factory) -> Path:
  """Folders t and r of targets and references, and labels of both."""
  folder, rng = tmp_path_factory.mktemp('photos'), np.random.default_rng(0)
  for name, size in _TARGETS.items():
    pictures.write_picture(folder / f't/{name}.png', rng.integers(70, 180, (*size, 3), np.uint8))
    pictures.write_picture(folder / f'labels/{name}.png', _label(size))
  for name, colour in _COLOURS.items():
    pictures.write_picture(folder / f'r/{name}.png', np.full((50, 50, 3), colour, np.uint8))
    pictures.write_picture(folder / f'labels/{name}.png', _label((50, 50)))
  return folder


def _words(photos, out, *more, targets='t', references='r', run=_RUN, maps='labels') -> list[str]:
  words = ['makeup', '--workdir', run, '--target', photos / targets, '--reference', photos / references, '--out', out]
  if maps:
    words += ['--target-labels', photos / maps, '--reference-labels', photos / maps]
  return [str(word) for word in (*words, *more)]


def _tint(name: str, size: tuple[int, int]) -> np.ndarray:
  """By how much all of a face changes at level 1, [3]."""
  return np.broadcast_to(0.3 * (np.array(_COLOURS[name]) - 127.5), (*size, 3))


def test_a_photo_wears_the_makeup_at_its_own_size(photos, tmp_path):
  out = tmp_path / 'new' / 'out.png'
  one = functools.partial(_words, photos, out, targets='t/b.png', references='r/red.png')
  photo = pictures.read_picture(photos / 't/b.png').astype(int)
  inside = cv2.erode(_label(_TARGETS['b']), np.ones((7, 7))) > 0
  outside = cv2.dilate(_label(_TARGETS['b']), np.ones((7, 7))) == 0
  for level in (1, 0.5, 0):
    assert main(one('--level', str(level))) == 0
    made_up = pictures.read_picture(out).astype(int)
    np.testing.assert_array_equal(made_up[outside], photo[outside])
    change = level * _tint('red', photo.shape[:2])
    np.testing.assert_allclose((made_up - photo)[inside], change[inside], atol=1.01)
    assert level or (made_up == photo).all()
  assert main(one('--level', '0', '--paste', 'network')) == 0
  made_up = pictures.read_picture(out).astype(int)
  np.testing.assert_array_equal(made_up[outside], photo[outside])
  # What the network draws is less by this much, and without the noise.
  np.testing.assert_allclose(made_up[inside].mean(), 0.8 * photo[inside].mean() - 0.1 * 127.5 + 0.2 * 127.5, atol=6)
  assert made_up[inside].std() < 0.7 * photo[inside].std()


def test_a_folder_gets_every_pair_and_level(photos, tmp_path, computed):
  assert main(_words(photos, tmp_path / 'out')) == 0
  pairs = [f'{target}__{reference}' for target in _TARGETS for reference in _COLOURS]
  assert sorted(path.stem for path in (tmp_path / 'out').iterdir()) == sorted(pairs)
  for target, size in _TARGETS.items():
    photo = pictures.read_picture(photos / f't/{target}.png').astype(int)
    for reference in _COLOURS:
      made_up = pictures.read_picture(tmp_path / f'out/{target}__{reference}.png')
      inside = cv2.erode(_label(size), np.ones((7, 7))) > 0
      np.testing.assert_allclose((made_up - photo)[inside], _tint(reference, size)[inside], atol=1.01)
  assert computed == {2: 2, 4: 2 * (1 + 2)}, 'each code once, each target once at level 0'

  assert main(_words(photos, tmp_path / 'out', '--levels', '0,0.25,1', targets='t/a.png')) == 0
  names = {f'{pair}__{level}' for pair in pairs[:2] for level in ('0', '0.25', '1')}
  assert {path.stem for path in (tmp_path / 'out').iterdir()} == {*pairs, *names}
  assert computed == {2: 4, 4: 6 + 1 + 4}, 'level 0 is not computed again'


def test_several_runs_have_a_folder_each(photos, tmp_path):
  more = ['--workdir', 'runs/weak', 'runs/strong']
  assert main(_words(photos, tmp_path / 'out', *more, targets='t/a.png', references='r/red.png')) == 0
  photo = pictures.read_picture(photos / 't/a.png').astype(int)
  weak, strong = (pictures.read_picture(tmp_path / f'out/{name}/a__red.png') - photo for name in ('weak', 'strong'))
  middle = slice(20, 40), slice(20, 30)
  np.testing.assert_allclose(strong[middle], 2 * weak[middle], atol=2.01)


def _cells(path: Path, titles: int = 0) -> np.ndarray:
  """The colours in the middle of a figure's pictures, [rows, columns, 3]."""
  sheet = pictures.read_picture(path)[titles:].astype(int)
  rows, columns = sheet.shape[0] // _CELL, sheet.shape[1] // _CELL
  assert sheet.shape[:2] == (rows * _CELL + 2, columns * _CELL + 2)
  cells = sheet[2:, 2:].reshape(rows, _CELL, columns, _CELL, 3)
  return cells[:, 32:-34, :, 32:-34].mean((1, 3))


def test_the_grid_of_targets_by_references(photos, tmp_path):
  out = tmp_path / 'grid.png'
  assert main(_words(photos, out)) == 0
  cells = _cells(out)
  assert cells.shape == (3, 3, 3)
  np.testing.assert_array_equal(cells[0, 0], 255)
  np.testing.assert_array_equal(cells[0, 1:], list(_COLOURS.values()))
  for row in (1, 2):
    change = cells[row, 1:] - cells[row, 0]
    np.testing.assert_allclose(change, [_tint(name, ())[:] for name in _COLOURS], atol=1)
  assert abs(cells[1, 0] - cells[2, 0]).max() > 0.5, 'another target'


def test_rows_of_levels_and_of_runs(photos, tmp_path):
  out = tmp_path / 'levels.png'
  assert main(_words(photos, out, '--levels', '0,0.5,1')) == 0
  cells = _cells(out, titles=22)
  assert cells.shape == (4, 5, 3)
  for row, name in enumerate([*_COLOURS] * 2):
    np.testing.assert_array_equal(cells[row, 4], _COLOURS[name])
    np.testing.assert_array_equal(cells[row, 1], cells[row, 0])
    np.testing.assert_allclose(cells[row, 2] - cells[row, 0], _tint(name, ()) / 2, atol=1)
    np.testing.assert_allclose(cells[row, 3] - cells[row, 0], _tint(name, ()), atol=1)
  np.testing.assert_array_equal(cells[0, 0], cells[1, 0])

  assert main(_words(photos, out, '--workdir', 'runs/weak', 'runs/strong')) == 0
  cells = _cells(out, titles=22)
  assert cells.shape == (4, 4, 3)
  for row, name in enumerate([*_COLOURS] * 2):
    np.testing.assert_array_equal(cells[row, 1], _COLOURS[name])
    np.testing.assert_allclose(cells[row, 2] - cells[row, 0], _tint(name, ()), atol=1)
    np.testing.assert_allclose(cells[row, 3] - cells[row, 0], 2 * _tint(name, ()), atol=1.5)


def test_label_maps_by_the_parser_and_of_other_orders(photos, tmp_path, monkeypatch):
  asked = []

  class Parser:
    batch_size = 8

    def __call__(self, images):
      asked.append(len(images))
      return [_label(image.shape[:2]) for image in images]

  monkeypatch.setattr(parsing, 'load_parser', lambda workdir: Parser())
  assert main(_words(photos, tmp_path / 'given')) == 0
  assert main(_words(photos, tmp_path / 'parsed', '--parser', 'runs/parser', maps=None)) == 0
  assert asked == [2, 2]
  more = ['--parser', 'runs/parser', '--target-labels', str(photos / 'labels'), '--label-order', 'bisenet']
  assert main(_words(photos, tmp_path / 'both', *more, maps=None)) == 0
  assert asked == [2, 2, 2], 'only the references'
  for path in (tmp_path / 'given').iterdir():
    for other in ('parsed', 'both'):
      assert path.read_bytes() == (tmp_path / other / path.name).read_bytes()


@pytest.mark.parametrize(('name', 'variant'), [('ipmnet', 'code'), ('beautygan', 'code')])
def test_the_systems_run_on_all_devices(name, variant, monkeypatch):
  """Traced, not compiled: whether a network is one that maps rows to rows, which `map_batches` asks for."""
  monkeypatch.undo()
  task = make_task(experiment(name, variant), training=False)
  state = jax.eval_shape(task.init, jax.random.key(0))
  batch, size = 8, task.image_size
  image = jax.ShapeDtypeStruct((batch, size, size, 3), np.float32)
  label = jax.ShapeDtypeStruct((batch, size, size), np.int32)
  run, *_ = device_map._compiled(functools.partial(makeup._code, task))
  code = jax.eval_shape(run, state, [image, label])
  run, *_ = device_map._compiled(functools.partial(makeup._wear, task))
  worn = jax.eval_shape(run, state, [image, label, code, jax.ShapeDtypeStruct((batch,), np.float32)])
  assert worn.shape == (batch, *[task.framing.crop_size] * 2, 3)


def _fails(capsys, *words) -> str:
  """Runs a command that must fail; returns its one line of error."""
  assert main([str(word) for word in words]) == 2
  (line,) = capsys.readouterr().err.strip().splitlines()
  return line


def test_wrong_photos_and_label_maps(photos, tmp_path, capsys):
  fails = functools.partial(_fails, capsys)
  out = tmp_path / 'out.png'
  for name, label in [
    ('none', np.zeros((60, 50), np.uint8)),
    ('two', _label((60, 50), faces=2)),
    ('all', np.ones((60, 50), np.uint8)),
    ('other', _label((50, 60))),
    ('few', np.full((60, 50), 99, np.uint8)),
  ]:
    pictures.write_picture(tmp_path / f'{name}.png', label)
  one = functools.partial(_words, photos, out, targets='t/a.png', references='r/red.png')
  given = lambda name: fails(*one('--target-labels', tmp_path / f'{name}.png'))
  assert 'a.png: no face found' in given('none')
  assert 'a.png: two faces found' in given('two')
  assert 'a.png: the face in its label map covers everything' in given('all')
  assert 'other.png: size mismatch (the picture is 50x60, its label map 60x50)' in given('other')
  assert 'few.png: label values outside 0..18 (found 99; is' in given('few')

  (tmp_path / 'empty').mkdir()
  assert 'empty: no pictures in this folder' in fails(*_words(photos, out, references=tmp_path / 'empty'))
  assert 'by --target-labels DIR and --reference-labels DIR, or a trained face parser by --parser' in fails(
    *one(maps=None)
  )
  assert 'by --reference-labels DIR, or' in fails(*one('--target-labels', photos / 'labels', maps=None))
  assert 'a.png: no label map a.png in --target-labels' in fails(*_words(photos, out, '--target-labels', photos / 'r'))
  pictures.write_picture(tmp_path / 'again/a.jpg', np.zeros((60, 50, 3), np.uint8))
  assert 'have one name' in fails(*_words(photos, tmp_path / 'out', '--target', photos / 't', tmp_path / 'again'))
  assert not out.exists()
  assert not (tmp_path / 'out').exists()


def test_wrong_options(photos, tmp_path, capsys):
  fails = functools.partial(_fails, capsys)
  out = tmp_path / 'out.png'
  assert 'level 1.5: must be in 0..1' in fails(*_words(photos, out, '--level', '1.5'))
  assert 'level nan' in fails(*_words(photos, out, '--level', 'nan'))
  assert '--levels 0,half: give numbers' in fails(*_words(photos, out, '--levels', '0,half'))
  assert 'several runs or several levels' in fails(*_words(photos, out, '--levels', '0,1', '--workdir', 'a', 'b'))
  assert 'names a run twice' in fails(*_words(photos, out, '--workdir', 'a', 'a'))
  assert "a run of task 'vae'; makeup is transferred by one of 'ipmnet'" in fails(*_words(photos, out, run='runs/vae'))
  assert 'pictures are written as .png' in fails(*_words(photos, tmp_path / 'out.webp'))
  assert not out.exists()


def test_label_maps_that_stand_on_their_heads_are_doubted(photos, tmp_path, caplog):
  label = _label(_TARGETS['a'])
  label[20] = labels.index('nose')
  label[55:] = labels.index('hair')
  pictures.write_picture(tmp_path / 'a.png', label)
  words = _words(photos, tmp_path / 'out.png', targets='t/a.png', references='r/red.png')
  assert main([*words, '--target-labels', str(tmp_path)]) == 0
  (record,) = caplog.records
  assert 'a.png: hair or brows start below the nose; is --label-order celebamask_hq right?' in record.getMessage()
