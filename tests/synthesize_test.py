"""`jaxface synthesize`: what each figure shows, where styles come from, and one clear line for wrong input."""

import dataclasses
import functools
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxface import device_map, face_drawing, labels, parsing, pictures, synthesis_figures
from jaxface.cli import main
from jaxface.errors import UserError
from jaxface.runs import Run
from jaxface.state import TrainState
from jaxface.styles import Style
from jaxface.synthesis_figures import OWN, Blend, Drawing, Face
from jaxface.tasks import make_task
from jaxface.tasks.scadm import ScaDmTask
from tests.smoke import experiment

_RUN = 'some/run'
_SIZE = 32  # Of the network's pictures.
_CELL = 3 * _SIZE + 2  # On a figure, where small pictures are enlarged.
_TITLE = 22
# Rows of a label map, of eight, that show a class. The photos' hair starts higher or lower than the layouts'.
_ROWS = {'hair': 2, 'skin': 3, 'u_lip': 1, 'neck': 2}
_COLOURS = {
  'anna': {'hair': (200, 40, 40), 'skin': (220, 180, 150), 'u_lip': (180, 30, 60), 'neck': (210, 170, 140)},
  'bert': {'hair': (30, 30, 30), 'skin': (120, 80, 60), 'u_lip': (90, 50, 40), 'neck': (110, 70, 50)},
}
# Where a row of each class lies in the network's picture.
_PLACES = {'hair': 3, 'skin': 13, 'u_lip': 22, 'neck': 29}


@dataclasses.dataclass(frozen=True)
class Painter(ScaDmTask):
  """In the place of networks: a class's style is its mean colour, and it is drawn in that; keys make it brighter."""

  def style(self, params, image, label):
    of_class = jax.nn.one_hot(label, labels.NUM_CLASSES)
    total = jax.numpy.einsum('bhwk,bhwc->bkc', of_class, image)
    return total / jax.numpy.maximum(of_class.sum((1, 2)), 1)[..., None]

  def draw(self, state, given, keys, *, sampling=None, noise=None):
    colours = jax.vmap(lambda tokens, label: tokens[label])(given.tokens, given.label)
    brighter = jax.vmap(lambda key: 0.2 * jax.random.uniform(key))(keys)
    return (colours + 1) / 2 * 0.8 + brighter[:, None, None, None]

  def coded(self, state, image):
    return {'first stage': (image + 1) / 4}


def _config(name: str) -> ConfigDict:
  config = experiment(name, 'published')
  config.model.image_size = _SIZE
  return config


def _run(name: str, task) -> Run:
  """A network that was never trained."""
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  random = np.random.default_rng(0)

  def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    values = random.standard_normal(leaf.shape, np.float32)
    if len(leaf.shape) < 2:
      return 0.1 * values + np.float32(path[-1].key == 'scale')
    return values / np.float32(np.sqrt(np.prod(leaf.shape[:-1])))

  params = jax.tree_util.tree_map_with_path(draw, shapes.params)
  state = TrainState(np.zeros((), np.int32), params, None, None, frozen=task.frozen)
  return Run(name, _config(name), SimpleNamespace(task=task), state, 0)


@pytest.fixture(scope='module')
def scadm() -> Run:
  return _run('scadm', make_task(_config('scadm'), training=False))


@pytest.fixture(scope='module')
def sdm() -> Run:
  return _run('sdm', make_task(_config('sdm'), training=False))


@pytest.fixture(autouse=True)
def opened(monkeypatch, scadm):
  """Every run is the painter."""
  task = Painter(**{field.name: getattr(scadm.engine.task, field.name) for field in dataclasses.fields(ScaDmTask)})
  state = TrainState(np.zeros((), np.int32), {}, None, None)
  painted = dataclasses.replace(scadm, engine=SimpleNamespace(task=task), state=state)
  monkeypatch.setattr(face_drawing, 'load_run', lambda workdir, checkpoint: painted)
  # Programs are compiled for a function, and new ones for every command would take as long as the rest.
  monkeypatch.setattr(face_drawing, 'functools', SimpleNamespace(partial=_partial))


_partial = functools.cache(functools.partial)


def _label(size: int = 64, order=labels.CLASSES) -> np.ndarray:
  rows = [order.index(name) for name, count in _ROWS.items() for _ in range(count)]
  return np.repeat(np.array(rows, np.uint8), size // 8)[:, None].repeat(size, 1)


@pytest.fixture(scope='module')
def files(tmp_path_factory) -> Path:
  """A label map, map.png; photos anna.png and bert.png, and label maps of both in labels."""
  folder = tmp_path_factory.mktemp('photos')
  pictures.write_picture(folder / 'map.png', _label())
  for name, colours in _COLOURS.items():
    palette = np.zeros((labels.NUM_CLASSES, 3), np.uint8)
    for part, colour in colours.items():
      palette[labels.index(part)] = colour
    pictures.write_picture(folder / f'{name}.png', palette[_label()])
    pictures.write_picture(folder / f'labels/{name}.png', _label())
  return folder


def _words(files: Path, out: Path, *more, layouts=('map.png',), style=()) -> list[str]:
  words = ['synthesize', '--workdir', _RUN, '--labels', *(files / name for name in layouts), '--out', out]
  words += ['--steps', 2, '--style-labels', files / 'labels']
  if style:
    words += ['--style', *('own' if name == 'own' else files / name for name in style)]
  return [str(word) for word in (*words, *more)]


def _cells(path: Path) -> np.ndarray:
  """A figure's pictures, [rows, columns, S, S, 3]."""
  sheet = pictures.read_picture(path)[_TITLE:].astype(int)
  rows, columns = sheet.shape[0] // _CELL, sheet.shape[1] // _CELL
  assert sheet.shape[:2] == (rows * _CELL + 2, columns * _CELL + 2)
  cells = sheet[2:, 2:].reshape(rows, _CELL, columns, _CELL, 3)[:, 1:-2:3, :, 1:-2:3]
  return cells.swapaxes(1, 2)


def _part(picture: np.ndarray, part: str) -> np.ndarray:
  """The colour of a part in pictures [..., S, S, 3]."""
  return picture[..., _PLACES[part], 16, :]


def _painted(name: str, part: str) -> np.ndarray:
  """What the painter makes of a colour, but for the brightness of the key."""
  return 0.8 * np.array(_COLOURS[name][part])


def _brightness(picture: np.ndarray, name: str, part: str) -> np.ndarray:
  """How much brighter it is than the painted colour of that photo: one number if the colour is right."""
  difference = _part(picture, part) - _painted(name, part)
  assert np.ptp(difference, axis=-1).max() <= 2, f'{part} is not in the colour of {name}'
  return difference.mean(-1)


def test_a_grid_has_a_row_a_label_map_and_seeds_make_the_draws(files, tmp_path):
  pictures.write_picture(tmp_path / 'other.png', _label(128)[::-1])
  words = functools.partial(_words, files, layouts=('map.png', tmp_path / 'other.png'))
  one, again, other = (tmp_path / name for name in ('new/one.png', 'again.png', 'seeded.png'))
  assert main(words(one)) == 0
  cells = _cells(one)
  assert cells.shape[:2] == (2, 1 + 8)
  for row, label in enumerate((_label(_SIZE), _label(_SIZE)[::-1])):
    np.testing.assert_array_equal(cells[row, 0], labels.PALETTE[label])
  draws = cells[:, 1:, 0, 0, 0]
  assert len(np.unique(draws)) >= 12, 'another face in every draw'
  assert main(words(again)) == 0
  assert one.read_bytes() == again.read_bytes()
  assert main(words(other, '--seed', 1)) == 0
  assert abs(_cells(other)[:, 1:, 0, 0, 0] - draws).max() > 2


def test_a_folder_gets_each_picture_and_the_count_changes_none(files, tmp_path):
  assert main(_words(files, tmp_path / 'two', '--count', 2, style=['anna.png'])) == 0
  assert main(_words(files, tmp_path / 'ten', '--count', 10, style=['anna.png'])) == 0
  assert {path.name for path in (tmp_path / 'two').iterdir()} == {'map__1.png', 'map__2.png'}
  assert len(list((tmp_path / 'ten').iterdir())) == 10
  for path in (tmp_path / 'two').iterdir():
    assert path.read_bytes() == (tmp_path / 'ten' / path.name).read_bytes()
    assert pictures.read_picture(path).shape == (_SIZE, _SIZE, 3)


def test_styles_of_the_whole_and_of_parts(files, tmp_path):
  out = tmp_path / 'out.png'
  assert main(_words(files, out, '--count', 2, style=['anna.png'])) == 0
  whole = _cells(out)[0]
  assert len(whole) == 1 + 1 + 2
  np.testing.assert_array_equal(_part(whole[1], 'hair'), _COLOURS['anna']['hair'])
  for part in _PLACES:
    _brightness(whole[2:], 'anna', part)

  assert main(_words(files, out, '--count', 2, '--part', f'hair,lips={files}/bert.png', style=['anna.png'])) == 0
  parts = _cells(out)[0]
  assert len(parts) == 1 + 1 + 2 + 2
  for part in ('hair', 'u_lip'):
    same = _brightness(parts[4:], 'bert', part) - _brightness(whole[2:], 'anna', part)
    np.testing.assert_allclose(same, 0, atol=1.5, err_msg='the same noise')
  for part in ('skin', 'neck'):
    np.testing.assert_array_equal(_part(parts[4:], part), _part(whole[2:], part))

  own = _words(files, out, '--count', 1, '--part', f'hair={files}/bert.png', layouts=['anna.png'], style=['own'])
  assert main(own) == 0
  np.testing.assert_array_equal(_part(_cells(out)[0, -1], 'skin'), _part(whole[2], 'skin'))
  _brightness(_cells(out)[0, -1], 'bert', 'hair')


def test_mixing_goes_from_the_first_style_to_the_second(files, tmp_path):
  out = tmp_path / 'out.png'
  both = ['anna.png', 'bert.png']
  assert main(_words(files, out, '--mix', '0,0.5,1', style=both)) == 0
  cells = _cells(out)[0]
  assert len(cells) == 2 + 3 + 1
  for part in _PLACES:
    first, half, second = _part(cells[2:5], part)
    np.testing.assert_allclose(half, (first + second) / 2, atol=1)
    _brightness(cells[2], 'anna', part)
    _brightness(cells[4], 'bert', part)
  np.testing.assert_array_equal(_part(cells[5], 'hair'), _COLOURS['bert']['hair'])

  for share, name in (('0', 'anna'), ('1', 'bert')):
    assert main(_words(files, tmp_path / share, '--count', 1, '--mix', share, style=both)) == 0
    assert main(_words(files, tmp_path / name, '--count', 1, style=[f'{name}.png'])) == 0
    assert (tmp_path / share / 'map__1.png').read_bytes() == (tmp_path / name / 'map__1.png').read_bytes()

  assert main(_words(files, out, '--figure', 'strip', '--part', 'hair', '--count', 2, style=both)) == 0
  cells = _cells(out)
  assert cells.shape[:2] == (2, 2 + 5 + 1)
  _brightness(cells[:, 6], 'bert', 'hair')
  for part in ('skin', 'u_lip', 'neck'):
    np.testing.assert_array_equal(_part(cells[:, 6], part), _part(cells[:, 2], part))


def test_the_swap_table_has_layouts_down_and_styles_across(files, tmp_path):
  out = tmp_path / 'out.png'
  assert main(_words(files, out, '--figure', 'swap', layouts=['anna.png', 'bert.png'])) == 0
  cells = _cells(out)
  assert cells.shape[:2] == (3, 3)
  assert (cells[0, 0] == 255).all()
  for column, name in enumerate(_COLOURS, start=1):
    np.testing.assert_array_equal(_part(cells[0, column], 'hair'), _COLOURS[name]['hair'])
    for part in _PLACES:
      _brightness(cells[1:, column], name, part)
  same_noise = _brightness(cells[1:, 1], 'anna', 'skin') - _brightness(cells[1:, 2], 'bert', 'skin')
  np.testing.assert_allclose(same_noise, 0, atol=1.5)

  assert main(_words(files, tmp_path / 'each', '--figure', 'swap', style=['bert.png'])) == 0
  assert [path.name for path in (tmp_path / 'each').iterdir()] == ['map__bert.png']


def test_the_swap_table_in_a_folder_has_a_file_for_each_photo_whatever_its_name(files, tmp_path):
  names = ('a b', 'a_b', '张三', '李四')
  for name in names:
    pictures.write_picture(tmp_path / f'{name}.png', pictures.read_picture(files / 'anna.png'))
    pictures.write_picture(tmp_path / f'labels/{name}.png', _label())
  words = _words(files, tmp_path / 'each', '--figure', 'swap', style=[tmp_path / f'{name}.png' for name in names])
  words[words.index('--style-labels') + 1] = str(tmp_path / 'labels')
  assert main(words) == 0
  assert {path.name for path in (tmp_path / 'each').iterdir()} == {f'map__{name}.png' for name in names}


def test_the_figure_of_parts_changes_one_at_a_time(files, tmp_path):
  out = tmp_path / 'parts'
  words = _words(files, out, '--figure', 'parts', layouts=['anna.png'], style=['own', 'bert.png'])
  assert main(words) == 0
  names = {path.stem.removeprefix('anna__'): pictures.read_picture(path).astype(int) for path in out.iterdir()}
  assert set(names) == {'unchanged', 'face', 'lips', 'hair', 'neck', 'all'}, 'what both have'
  of_part = {'face': 'skin', 'lips': 'u_lip', 'hair': 'hair', 'neck': 'neck'}
  for group, part in of_part.items():
    _brightness(names[group], 'bert', part)
    _brightness(names['all'], 'bert', part)
    for other in set(_PLACES) - {part}:
      np.testing.assert_array_equal(_part(names[group], other), _part(names['unchanged'], other))
  assert main([word if word != str(out) else f'{out}.png' for word in words]) == 0
  assert _cells(Path(f'{out}.png')).shape[:2] == (1, 3 + 6)


def test_reconstruction_shows_what_each_stage_makes_of_a_photo(files, tmp_path):
  out = tmp_path / 'out.png'
  assert main(_words(files, out, '--figure', 'reconstruction', layouts=['anna.png', 'bert.png'])) == 0
  cells = _cells(out)
  assert cells.shape[:2] == (2, 5)
  for row, name in enumerate(_COLOURS):
    photo, label, coded, own, none = cells[row]
    np.testing.assert_array_equal(_part(photo, 'hair'), _COLOURS[name]['hair'])
    np.testing.assert_array_equal(label, labels.PALETTE[_label(_SIZE)])
    np.testing.assert_allclose(coded, photo / 2, atol=0.51)
    brightness = _brightness(own, name, 'hair')
    np.testing.assert_allclose(_part(none, 'hair') - 0.8 * 127.5, brightness, atol=1.5, err_msg='grey: no style')


def _face(number: int) -> Face:
  """A face of one colour, which all its parts' styles are, too; without a picture they are minus that."""
  label = np.arange(20, dtype=np.int32).reshape(4, 5) % labels.NUM_CLASSES
  style = Style(np.full((labels.NUM_CLASSES, 1), number, np.float32), np.ones(labels.NUM_CLASSES, bool))
  none = Style(-style.tokens, np.zeros(labels.NUM_CLASSES, bool))
  return Face(Path(f'{number}.png'), label, np.full((4, 5, 3), number, np.uint8), none, style)


def _drawn_in(column: list[Drawing]) -> list[tuple[int, int, float]]:
  return [(layout, draw, float(style.tokens[0, 0])) for layout, draw, style in column]


def test_every_row_of_a_figure_has_its_own_layout_style_and_draw():
  layouts, other = [_face(1), _face(2)], _face(7)
  ours = [(0, 0, 1), (0, 1, 1), (1, 0, 2), (1, 1, 2)]
  theirs = [(layout, draw, 7) for layout, draw, _ in ours]
  first_and_second = lambda table: [[image[0, 0, 0] for image in table[f'{n} style']] for n in ('first', 'second')]
  table = synthesis_figures.strip(layouts, Blend((OWN, other)), (0, 1), 2)
  assert (_drawn_in(table['mix 0']), _drawn_in(table['mix 1'])) == (ours, theirs)
  assert first_and_second(table) == [[1, 1, 2, 2], [7] * 4]
  table = synthesis_figures.parts(layouts, Blend((OWN, other)), 2)
  assert (_drawn_in(table['unchanged']), _drawn_in(table['all'])) == (ours, theirs)
  assert first_and_second(table) == [[1, 1, 2, 2], [7] * 4]
  table = synthesis_figures.reconstruction(layouts, {}, 2)
  assert _drawn_in(table['own style']) == ours
  assert _drawn_in(table['mask only']) == [(layout, draw, -number) for layout, draw, number in ours]


def test_options_reach_the_run_and_its_sampler(files, tmp_path, monkeypatch):
  asked = []
  monkeypatch.setattr(face_drawing, 'open_run', lambda *where, styled: asked.extend((*where, styled)))

  def sampling(run, *how):
    asked.extend(how)
    raise UserError('enough')

  monkeypatch.setattr(face_drawing, 'make_sampling', sampling)
  more = '--sampler', 'dpm_solver', '--guidance', 2, '--checkpoint', 500
  assert main(_words(files, tmp_path / 'out.png', *more)) == 2
  assert asked == [Path(_RUN), '500', False, 'dpm_solver', 2, 2]


def test_a_place_that_cannot_be_written_is_told_before_anything_is_drawn(files, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(face_drawing, 'draw', lambda *_: pytest.fail('drawn'))
  (tmp_path / 'file').write_bytes(b'')
  assert 'file' in _fails(capsys, _words(files, tmp_path / 'file/out.png', '--count', 1))


def test_what_a_photo_lacks_is_said_and_kept(files, tmp_path, caplog):
  label = _label()
  label[label == labels.index('u_lip')] = labels.index('skin')
  pictures.write_picture(tmp_path / 'bert.png', label)
  out = tmp_path / 'out'
  more = ['--count', '1', '--part', f'lips={files}/bert.png', '--part', f'hat={files}/bert.png']
  words = _words(files, out, *more, layouts=['map.png'], style=['anna.png'])
  words[words.index('--style-labels') + 1] = str(tmp_path)
  pictures.write_picture(tmp_path / 'anna.png', _label())
  assert main(words) == 0
  drawn = pictures.read_picture(out / 'map__1.png').astype(int)
  for part in _PLACES:
    _brightness(drawn, 'anna', part)
  lines = [record.getMessage() for record in caplog.records]
  assert len(lines) == 2, lines
  assert 'bert.png has no u_lip at 32 pixels; ' in lines[0]
  assert 'no hat in ' in lines[1]
  assert '--part hat has no effect' in lines[1]


def test_label_maps_of_other_orders_and_shapes_and_by_the_parser(files, tmp_path, caplog, monkeypatch):
  # In a style: in none all classes look alike here.
  words = functools.partial(_words, files, style=['anna.png'])
  assert main(words(tmp_path / 'plain', '--count', 1)) == 0
  pictures.write_picture(tmp_path / 'other/map.png', _label(96, labels.BISENET_CLASSES), palette=labels.PALETTE)
  pictures.write_picture(tmp_path / 'other/labels/anna.png', _label(64, labels.BISENET_CLASSES))
  bisenet = words(tmp_path / 'bisenet', '--count', 1, '--label-order', 'bisenet', layouts=[tmp_path / 'other/map.png'])
  assert main([*bisenet, '--style-labels', str(tmp_path / 'other/labels')]) == 0
  pictures.write_picture(tmp_path / 'wide/map.png', np.pad(_label(96), ((0, 0), (15, 15))))
  assert not caplog.records
  assert main(words(tmp_path / 'cut', '--count', 1, layouts=[tmp_path / 'wide/map.png'])) == 0
  (record,) = caplog.records
  assert 'map.png: 126x96 pixels are no square, of which its middle is taken, 96x96' in record.getMessage()

  asked = []

  class Parser:
    batch_size = 8

    def __call__(self, images):
      asked.append(len(images))
      return [_label(image.shape[0]) for image in images]

  monkeypatch.setattr(parsing, 'load_parser', lambda workdir: Parser())
  pictures.write_picture(tmp_path / 'map.jpg', pictures.read_picture(files / 'anna.png'))
  parsed = words(tmp_path / 'parsed', '--count', 1, '--parser', 'runs/parser', layouts=[tmp_path / 'map.jpg'])
  assert main(parsed) == 0
  assert asked == [1], 'the style photo has a label map'
  drawn = {name: (tmp_path / name).glob('*.png') for name in ('plain', 'bisenet', 'cut', 'parsed')}
  drawn = {name: [path.read_bytes() for path in paths] for name, paths in drawn.items()}
  assert len(drawn['plain']) == 1
  assert drawn['bisenet'] == drawn['cut'] == drawn['parsed'] == drawn['plain']


def test_a_network_draws_each_face_by_its_own_key_and_style(files, scadm, monkeypatch):
  monkeypatch.undo()
  sampling = face_drawing.make_sampling(scadm, 'dpm_solver', 2, 1.5)
  assert (sampling.guidance, len(sampling.plan.timesteps)) == (1.5, 2)
  given = face_drawing.photos.Photos([files / 'anna.png'], {files / 'anna.png': files / 'map.png'}, 'celebamask_hq')
  faces = face_drawing.see(scadm, [files / 'map.png'], given)
  layout, own = faces[files / 'map.png'], faces[files / 'anna.png'].own
  assert own.tokens.shape == layout.none.tokens.shape
  assert own.tokens.dtype == np.float32
  assert abs(own.tokens - layout.none.tokens).max() > 1e-3
  none, other = layout.none, own
  drawings = [Drawing(0, 0, none), Drawing(0, 1, none), Drawing(1, 0, none), Drawing(0, 0, none), Drawing(0, 0, other)]
  first, second, elsewhere, again, styled = face_drawing.draw(scadm, sampling, drawings, [layout, layout], seed=3)
  assert first.shape == (_SIZE, _SIZE, 3)
  np.testing.assert_array_equal(first, again)
  for different in (second, elsewhere, styled):
    assert (different != first).mean() > 0.05


def test_sdm_draws_after_label_maps(sdm, monkeypatch):
  """Traced, not compiled: whether the network is one that maps rows to rows, which `map_batches` asks for."""
  monkeypatch.undo()
  sampling = face_drawing.make_sampling(sdm, None, 2, 1.0)
  assert sampling.clip
  assert sampling.plan.learned
  assert not face_drawing.make_sampling(sdm, 'ddim', 2, 1.0).plan.draws
  task, batch = sdm.engine.task, 8
  run, *_ = device_map._compiled(functools.partial(face_drawing._drawn, task, sampling))
  label = jax.ShapeDtypeStruct((batch, task.image_size, task.image_size), np.int32)
  drawn = jax.eval_shape(run, sdm.state, [label, jax.ShapeDtypeStruct((batch, 3), np.uint32)])
  assert drawn.shape == (batch, task.image_size, task.image_size, 3)


def _fails(capsys, words) -> str:
  """Runs a command that must fail; returns its one line of error."""
  assert main([str(word) for word in words]) == 2
  (line,) = capsys.readouterr().err.strip().splitlines()
  return line


def test_wrong_label_maps_and_photos(files, tmp_path, capsys):
  out = tmp_path / 'out.png'
  fails = lambda *more, **options: _fails(capsys, _words(files, out, *more, **options))
  label = _label()
  label[0, :3] = 19, 40, 255
  pictures.write_picture(tmp_path / 'few.png', label)
  line = fails(layouts=[tmp_path / 'few.png'])
  assert 'few.png: label values outside 0..18 (found 19, 40, 255; is --label-order celebamask_hq right, of' in line
  assert 'outside 0..13 (found 17;' in fails('--label-order', 'makeup_transfer')
  pictures.write_picture(tmp_path / 'photo.jpg', pictures.read_picture(files / 'anna.png'))
  line = fails(layouts=[tmp_path / 'photo.jpg'])
  assert 'photo.jpg: where are its parts? Give its label map by --style-labels, or a trained face parser by' in line
  assert 'photo.jpg: where are its parts?' in fails(style=[tmp_path / 'photo.jpg'])
  assert 'map.png is a label map, so there is no style of its own' in fails(style=['own'])
  assert 'map.png is a label map' in fails('--figure', 'swap')
  assert 'map.png is a label map' in fails('--figure', 'reconstruction')
  assert 'none.png: no such file or folder' in fails(layouts=['none.png'])
  assert 'none.png: no such file or folder' in fails('--part', f'hair={tmp_path}/none.png')
  assert not out.exists()


def test_wrong_options(files, tmp_path, capsys, monkeypatch, sdm):
  out = tmp_path / 'out.png'
  fails = lambda *more, **options: _fails(capsys, _words(files, out, *more, **options))
  both = ['anna.png', 'bert.png']
  assert "unknown part 'beard'; choose from face, eyes" in fails('--part', f'beard={files}/anna.png')
  assert '--part hair: of which photo? Give --part hair=PHOTO' in fails('--part', 'hair')
  assert 'give a photo after =' in fails('--part', 'hair=')
  assert 'give one photo, not a folder' in fails('--part', f'hair={files}')
  assert '--mix goes from one style to another; give two by --style' in fails('--mix', '0.5', style=['anna.png'])
  assert '--figure parts goes from one style' in fails('--figure', 'parts', style=['anna.png'])
  assert '2 styles; give one, or say by --mix' in fails(style=both)
  assert '--mix 1.5: must be in 0..1' in fails('--mix', '1.5', style=both)
  assert '--mix half: give numbers' in fails('--mix', 'half', style=both)
  assert 'are a strip, and --figure is grid' in fails('--mix', '0,1', '--figure', 'grid', style=both)
  assert 'knows neither --mix nor --part' in fails('--figure', 'swap', '--mix', '0.5', style=both)
  assert 'leave out --style' in fails('--figure', 'reconstruction', style=['anna.png'])
  assert "not 'own'" in fails('--figure', 'swap', style=['own'], layouts=['anna.png'])
  assert '--count 0: give at least 1' in fails('--count', 0)
  assert '--seed -1: must be in 0..' in fails('--seed', -1)
  assert 'steps=1; ddim takes 2 to 500' in fails('--steps', 1)
  assert 'guidance=-2.0' in fails('--guidance', -2)
  assert 'guidance=nan' in fails('--guidance', 'nan')
  assert 'guidance=inf' in fails('--guidance', 'inf')
  assert 'pictures are written as .png' in _fails(capsys, _words(files, tmp_path / 'out.webp'))

  monkeypatch.setattr(face_drawing, 'load_run', lambda workdir, checkpoint: sdm)
  assert "a run of task 'sdm', which knows no styles; leave out --style" in fails(style=['anna.png'])
  assert 'knows no styles' in fails('--figure', 'swap', layouts=['anna.png'])
  other = dataclasses.replace(sdm, config=SimpleNamespace(task='vae'), engine=SimpleNamespace(task=object()))
  monkeypatch.setattr(face_drawing, 'load_run', lambda workdir, checkpoint: other)
  assert "some/run is a run of task 'vae'; faces are drawn after label maps by one of 'scadm' or 'sdm'" in fails()
  assert not out.exists()
