"""Pictures of results: grids of columns by example, loss curves. Everything takes numpy and writes PNG."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from jaxface.pictures import write_picture

_GAP = 2
_TITLE_HEIGHT = 22
_SEEN_WIDTH = 96  # Pixels on the sheet that a face should have at least.


def to_uint8(image: np.ndarray) -> np.ndarray:
  """Float [..., H, W, 1 or 3] in [0, 1] -> uint8 [..., H, W, 3]."""
  image = np.asarray(image)
  if image.dtype != np.uint8:
    image = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
  return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image


def _enlargement(width: int) -> int:
  return max(1, _SEEN_WIDTH // width)


def tile(rows: Sequence[Sequence[np.ndarray | None]], gap: int = _GAP) -> np.ndarray:
  """Lays pictures of one size, given as rows, on a white sheet: uint8 [H, W, 3]. None leaves a place empty.

  Pixels of small pictures are repeated, so that a person can see them.
  """
  pictures = [[None if p is None else to_uint8(p) for p in row] for row in rows]
  height, width = next(p.shape[:2] for row in pictures for p in row if p is not None)
  times = _enlargement(width)
  down, right = height * times + gap, width * times + gap
  sheet = np.full((len(rows) * down + gap, max(map(len, rows)) * right + gap, 3), 255, np.uint8)
  for y, row in enumerate(pictures):
    for x, picture in enumerate(row):
      if picture is not None:
        top, left = gap + y * down, gap + x * right
        large = picture.repeat(times, axis=0).repeat(times, axis=1)
        sheet[top : top + height * times, left : left + width * times] = large
  return sheet


def titled_columns(columns: Mapping[str, np.ndarray | Sequence[np.ndarray | None]], max_rows: int = 8) -> np.ndarray:
  """A grid with one row an example and one titled column a name: {name: [N, H, W, 1 or 3]} -> uint8 [H', W', 3].

  A column may be a list in which None leaves a place empty.
  """
  count = min(max_rows, *(len(values) for values in columns.values()))
  sheet = tile([[values[i] for values in columns.values()] for i in range(count)])
  titles = np.full((_TITLE_HEIGHT, sheet.shape[1], 3), 255, np.uint8)
  pitch = (sheet.shape[1] - _GAP) // len(columns)
  for i, name in enumerate(columns):
    scale = 0.42
    while scale > 0.2 and cv2.getTextSize(name, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)[0][0] > pitch - 4:
      scale -= 0.02
    place = (_GAP + 2 + i * pitch, _TITLE_HEIGHT - 7)
    cv2.putText(titles, name, place, cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 0), 1, cv2.LINE_AA)
  return np.concatenate([titles, sheet])


def square_sheet(images: np.ndarray) -> np.ndarray:
  """A nearly square sheet of N pictures [N, H, W, C]: uint8 [H', W', 3]."""
  columns = int(np.ceil(np.sqrt(len(images))))
  rows = [list(images[i : i + columns]) for i in range(0, len(images), columns)]
  rows[-1] += [None] * (columns - len(rows[-1]))
  return tile(rows)


def plot_losses(path: Path, records: Sequence[Mapping[str, float]]) -> None:
  """Curves of the loss and its terms over the steps, a panel a term, from the lines of metrics.jsonl.

  Terms are what training reports, with validation's value where it has one; further metrics are in TensorBoard.
  """
  # Half a second to import, for which most commands need not wait. Without pyplot no display is asked for.
  from matplotlib.figure import Figure

  series: dict[str, dict[str, list[tuple[float, float]]]] = {}
  for record in records:
    for name, value in record.items():
      part, _, term = name.partition('/')
      if part in ('train', 'validation'):
        series.setdefault(term, {}).setdefault(part, []).append((record['step'], value))
  terms = [term for term in series if 'train' in series[term] and term != 'images_per_second']
  terms.sort(key=lambda term: (term != 'loss', term))
  if not terms:
    return
  columns = min(3, len(terms))
  rows = -(-len(terms) // columns)
  # Sizes in inches, chosen so that nothing overlaps: Matplotlib's own layouts draw everything twice to find that out.
  width, height = 4.2 * columns, 2.8 * rows
  figure = Figure(figsize=(width, height))
  axes = figure.subplots(rows, columns, squeeze=False)
  figure.subplots_adjust(0.6 / width, 0.5 / height, 1 - 0.2 / width, 1 - 0.3 / height, wspace=0.25, hspace=0.45)
  for axis in axes.flat[len(terms) :]:
    axis.axis('off')
  for axis, term in zip(axes.flat, terms, strict=False):
    for part, points in series[term].items():
      steps, values = zip(*points, strict=True)
      axis.plot(steps, values, label=part, marker='o' if part == 'validation' else None, markersize=3, linewidth=1.2)
    axis.set_title(term, fontsize=10)
    axis.set_xlabel('step', fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    if len(series[term]) > 1:
      axis.legend(fontsize=8)
  figure.savefig(path, dpi=110)


def save_png(path: Path, image: np.ndarray) -> None:
  """Writes a picture (float in [0, 1] or uint8), making its folder."""
  write_picture(Path(path), to_uint8(image))
