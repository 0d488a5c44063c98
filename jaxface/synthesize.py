"""`jaxface synthesize`: faces drawn after label maps, in no style or in those of other faces, whole or part by part."""

import argparse
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxface import labels, photos, pictures, styles, synthesis_figures
from jaxface.errors import UserError
from jaxface.folders import check_writable
from jaxface.synthesis_figures import OWN, Drawing, Face, Table

# What imports JAX is imported inside the functions: `jaxface --help` need not wait for it.

FIGURES = ('grid', 'reconstruction', 'swap', 'parts', 'strip')

# Draws after each label map, where nobody says how many; in other figures one.
_GRID_COUNT = 8
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def synthesize(
  workdir: Path,
  layouts: Sequence[Path],
  out: Path,
  *,
  style: Sequence[Path | str] = (),
  parts: Mapping[str, Path | None] | None = None,
  shares: Sequence[float] | None = None,
  figure: str | None = None,
  count: int | None = None,
  seed: int = 0,
  steps: int = 50,
  guidance: float | None = None,
  sampler: str | None = None,
  style_labels: Path | None = None,
  label_order: str = 'celebamask_hq',
  parser: Path | None = None,
  checkpoint: str = 'best',
) -> list[Path]:
  """Draws faces after label maps, and returns the files it has written: a figure, or a file for each drawn picture.

  Label maps and photos are brought to the network's size; of what is not square the middle is taken. Draw i after
  layout j starts from noise that depends on seed, i and j alone, so styles change on a face and nothing else does.

  The figures: 'grid', a row a layout with its draws across; 'strip', the way from the first style to the second;
  'parts', the first style with each part in the second's; 'swap', layouts down and styles across, by default those of
  the layouts' own photos; 'reconstruction', photos beside what the first stage alone makes of them, what is drawn in
  their own style, and in none.

  Args:
    workdir: run of task 'scadm' or 'sdm'; the latter knows no styles, and draws grids only.
    layouts: label maps (PNGs of one channel) or photos whose label maps are drawn after, or folders of such.
    out: a .png or .jpg for the figure, or a folder that gets LAYOUT__COLUMN.png for each picture drawn in it.
    style: photos whose style faces have, OWN for the layout's own photo; none for no style. Two to mix.
    parts: parts (see `styles.part_classes`) that have their style from another photo; those with None are those that
      `shares` is about, by default everything.
    shares: how far from the first style to the second, 0 to 1.
    figure: a name of FIGURES; default 'strip' for several shares, else 'grid'.
    count: draws after each layout; default 8 in a grid, else 1.
    seed: of the noise.
    steps: of the sampler; 0 for as many as there are timesteps.
    guidance: away from what is drawn after nothing; 1 for none; default the run's own.
    sampler: 'ddim', 'ddpm' or 'dpm_solver'; default the run's own.
    style_labels: folder of label maps named as the photos, NAME.png; of a single photo also the file.
    label_order: order of the classes in all label maps, a name of `jaxface.labels.ORDERS`.
    parser: workdir of a face parser, for photos without label maps.
    checkpoint: of the run: 'best', 'latest' or a step.
  """
  parts = parts or {}
  style = list(itertools.chain.from_iterable([each] if each == OWN else photos.find([each], out) for each in style))
  figure = figure or ('strip' if shares and len(shares) > 1 else 'grid')
  _check(figure, style, parts, shares, count, seed, label_order)
  one_picture = pictures.is_one_picture(out)
  asked = photos.find(layouts, out)
  if not one_picture:
    photos.check_names(asked, 'pictures that are written to a folder are named by their label maps')
  if figure == 'swap':
    photos.check_names([path for path in style or asked if path != OWN], 'columns are named by their photos')
  references = [path for path in style if path != OWN] + [path for path in parts.values() if path is not None]
  given = _photos([path for path in asked if not photos.is_label_map(path)] + references, style_labels, label_order)
  unknown = [path for path in given.paths if path not in given.label_maps]
  if unknown and parser is None:
    raise UserError(
      f'{unknown[0]}: where are its parts? Give its label map by --style-labels, or a trained face parser by --parser'
    )

  from jaxface import face_drawing

  run = face_drawing.open_run(workdir, checkpoint, styled=bool(style or parts or shares or figure != 'grid'))
  sampling = face_drawing.make_sampling(run, sampler, steps, guidance)
  if unknown:
    from jaxface.parsing import load_parser

    given = photos.Photos(given.paths, given.label_maps, label_order, load_parser(parser))
  faces = face_drawing.see(run, asked, given)
  check_writable(out, of_files=not one_picture)
  layout_faces = [faces[path] for path in asked]
  whole = [faces.get(each, each) for each in style]
  if figure == 'reconstruction':
    through = face_drawing.through_first_stage(run, [synthesis_figures.reference(OWN, face) for face in layout_faces])
    table = synthesis_figures.reconstruction(layout_faces, {'first stage': through}, count or 1)
  elif figure == 'swap':
    table = _swap(layout_faces, whole, count or 1)
  else:
    table = _blended(figure, layout_faces, whole, {n: p and faces[p] for n, p in parts.items()}, shares, count)
  drawings = [cell for column in table.values() for cell in column if isinstance(cell, Drawing)]
  drawn = face_drawing.draw(run, sampling, drawings, layout_faces, seed)
  written = (
    _write_figure(out, table, drawn)
    if one_picture
    else _write_each(out, table, drawn, asked, of_photos=figure == 'swap')
  )
  number = len(drawings)
  print(f'drew {number:,} {"faces" if number > 1 else "face"} in {len(sampling.plan.timesteps)} steps: {out}')
  return written


def _check(
  figure: str,
  style: Sequence[Path | str],
  parts: Mapping[str, Path | None],
  shares: Sequence[float] | None,
  count: int | None,
  seed: int,
  label_order: str,
) -> None:
  if figure not in FIGURES:
    raise UserError(f'unknown figure {figure!r}; choose from {", ".join(FIGURES)}')
  for share in shares or ():
    if not 0 <= share <= 1:
      raise UserError(f'--mix {share:g}: must be in 0..1; 0 is the first style, 1 the second')
  if figure == 'grid' and shares and len(shares) > 1:
    raise UserError(
      f'{len(shares)} values of --mix are a strip, and --figure is grid; give one value, or --figure strip'
    )
  if count is not None and count < 1:
    raise UserError(f'--count {count}: give at least 1')
  if not 0 <= seed < 2**32:
    raise UserError(f'--seed {seed}: must be in 0..{2**32 - 1}')
  for part in parts:
    styles.part_classes(part)
  mixes = figure in ('strip', 'parts') or shares is not None
  if figure in ('swap', 'reconstruction', 'parts') and (shares is not None or parts):
    raise UserError(f'--figure {figure} knows neither --mix nor --part; they are for grid and strip')
  if figure == 'reconstruction' and style:
    raise UserError('--figure reconstruction draws photos in their own style; leave out --style')
  if mixes and len(style) != 2:
    why = f'--figure {figure}' if figure in ('strip', 'parts') else '--mix'
    raise UserError(
      f"{why} goes from one style to another; give two by --style, 'own' for the photo of --labels itself"
    )
  if len(style) > 1 and not mixes and figure != 'swap':
    raise UserError(f'{len(style)} styles; give one, or say by --mix how far to go from the first to the second')
  for part, path in parts.items():
    if path is not None and pictures.find_pictures(path) != [path]:
      raise UserError(f'--part {part}={path}: give one photo, not a folder')
  bare = [part for part, path in parts.items() if path is None]
  if bare and not mixes:
    raise UserError(
      f'--part {bare[0]}: of which photo? Give --part {bare[0]}=PHOTO, or two styles, and how far to go by --mix'
    )
  labels.lookup_table(label_order)


def _photos(paths: Sequence[Path], style_labels: Path | None, order: str) -> photos.Photos:
  paths = list(dict.fromkeys(paths))
  maps = photos.find_label_maps(paths, style_labels, '--style-labels', some_missing=True)
  return photos.Photos(paths, maps, order)


def _swap(layouts: Sequence[Face], whole: Sequence[Face], count: int) -> Table:
  if not whole:
    whole = [synthesis_figures.reference(OWN, layout) for layout in layouts]
  if OWN in whole:
    raise UserError("--figure swap draws every layout in every style; give photos by --style, not 'own'")
  return synthesis_figures.swap(layouts, whole, count)


def _blended(
  figure: str,
  layouts: Sequence[Face],
  whole: Sequence[Face | str],
  parts: Mapping[str, Face | None],
  shares: Sequence[float] | None,
  count: int | None,
) -> Table:
  """The figures of one style for each layout; warns of what cannot be taken from a photo."""
  bare = [styles.part_classes(part) for part, face in parts.items() if face is None]
  mixed = tuple(itertools.chain(*bare)) if bare else None
  blend = synthesis_figures.Blend(whole, mixed, {part: face for part, face in parts.items() if face is not None})
  for line in blend.complaints(layouts):
    logging.getLogger(__name__).warning('%s', line)
  if figure == 'grid':
    return synthesis_figures.grid(layouts, blend, shares[0] if shares else 0.0, count or _GRID_COUNT)
  if figure == 'parts':
    return synthesis_figures.parts(layouts, blend, count or 1)
  return synthesis_figures.strip(layouts, blend, shares or _SHARES, count or 1)


def _write_figure(out: Path, table: Table, drawn: Iterator[np.ndarray]) -> list[Path]:
  from jaxface import figures

  columns = {
    caption: [next(drawn) if isinstance(cell, Drawing) else cell for cell in column]
    for caption, column in table.items()
  }
  rows = max(map(len, columns.values()))
  pictures.write_picture(out, figures.titled_columns(columns, max_rows=rows))
  return [out]


def _write_each(
  out: Path, table: Table, drawn: Iterator[np.ndarray], layouts: Sequence[Path], *, of_photos: bool
) -> list[Path]:
  written = []
  for caption, column in table.items():
    # Names of photos stay what they are, or two might become one.
    word = caption if of_photos else caption.replace(' ', '_')
    cells = [cell for cell in column if isinstance(cell, Drawing)]
    several = max((cell.draw for cell in cells), default=0) > min((cell.draw for cell in cells), default=0)
    for layout, draw, _ in cells:
      name = f'{layouts[layout].stem}__{word}'
      path = out / (f'{name}__{draw + 1}.png' if several else f'{name}.png')
      pictures.write_picture(path, next(drawn))
      written.append(path)
  return written


def register(subparsers: 'argparse._SubParsersAction') -> None:
  """Add the command `synthesize` to argparse's subparsers; it sets `run`, a function of the parsed arguments."""
  text = 'draw faces after label maps, in no style or in those of photos, whole or part by part'
  command = subparsers.add_parser('synthesize', help=text, description=text)
  command.add_argument('--workdir', type=Path, required=True, help='folder of a `jaxface train` run of SCA-DM or SDM')
  command.add_argument('--checkpoint', default='best', help="'best' (by validation), 'latest' or a step; default best")
  command.add_argument('--labels', type=Path, nargs='+', required=True, metavar='FILE', help='label maps to draw '
                       'faces after (PNGs of one channel), photos whose label maps to draw after, or folders of '
                       'such')  # fmt: skip
  command.add_argument('--style', type=_style_word, nargs='+', default=[], metavar='PHOTO', help="whose style faces "
                       "have, 'own' for the photo of --labels itself; two for --mix; default no style, another in "
                       'every draw')  # fmt: skip
  command.add_argument('--part', action='append', default=[], metavar='PART=PHOTO', help='whose style a part has, such '
                       f'as hair=her.jpg; may be said again; parts are {", ".join(styles.GROUPS)} and the classes of '
                       'label maps. Without =PHOTO: what --mix is about')  # fmt: skip
  command.add_argument('--mix', metavar='M,M,...', help='how far from the first style to the second, 0 to 1; several '
                       'values make a strip')  # fmt: skip
  command.add_argument('--figure', choices=FIGURES, help='default grid, or strip for several values of --mix; parts: '
                       'the first style with each part in the second; swap: all layouts in all styles; '
                       'reconstruction: photos again')  # fmt: skip
  command.add_argument('--count', type=int, metavar='N', help=f'draws after each label map; default {_GRID_COUNT} in a '
                       'grid, else 1')  # fmt: skip
  command.add_argument('--seed', type=int, default=0, help='of the noise that faces are drawn from; default 0')
  command.add_argument('--steps', type=int, default=50, help='of the sampler; 0 for all timesteps; default 50')
  command.add_argument('--guidance', type=float, help='more than 1 follows label map and style more strictly; default '
                       "the run's own")  # fmt: skip
  command.add_argument('--sampler', choices=('ddim', 'ddpm', 'dpm_solver'), help="default the run's own")
  command.add_argument('--style-labels', type=Path, metavar='DIR', help='label maps of the photos, NAME.png for '
                       'NAME.jpg; of a single photo also the file')  # fmt: skip
  command.add_argument('--label-order', choices=labels.ORDERS, default='celebamask_hq', help='order of the classes in '
                       'all label maps; default celebamask_hq')  # fmt: skip
  command.add_argument('--parser', type=Path, metavar='WORKDIR', help='face parser for photos without label maps')
  command.add_argument('--out', type=Path, required=True, help='a .png or .jpg for the figure, or a folder for one '
                       'file a picture')  # fmt: skip
  command.set_defaults(run=_run)


def _style_word(word: str) -> Path | str:
  return OWN if word == OWN else Path(word)


def _run(args: argparse.Namespace) -> None:
  options = (
    'style', 'figure', 'count', 'seed', 'steps', 'guidance', 'sampler', 'style_labels', 'label_order', 'parser',
    'checkpoint',
  )  # fmt: skip
  synthesize(
    args.workdir,
    args.labels,
    args.out,
    parts=_parse_parts(args.part),
    shares=None if args.mix is None else _parse_shares(args.mix),
    **{name: getattr(args, name) for name in options},
  )


def _parse_parts(words: Sequence[str]) -> dict[str, Path | None]:
  parts = {}
  for word in words:
    names, equals, path = word.partition('=')
    if equals and not path:
      raise UserError(f'--part {word}: give a photo after =, such as --part hair=her.jpg')
    parts |= dict.fromkeys(names.split(','), Path(path) if equals else None)
  return parts


def _parse_shares(text: str) -> list[float]:
  try:
    return [float(part) for part in text.split(',')]
  except ValueError:
    raise UserError(f'--mix {text}: give numbers in 0..1, such as 0.5, or 0,0.25,0.5,0.75,1 for a strip') from None
