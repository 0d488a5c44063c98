"""Everything painted on the front of the head: skin, beard, nose, eyes, brows, mouth, ears."""

import cv2
import numpy as np

from jaxface import labels

from . import tiles
from .canvas import Canvas, Ink, clip, Patch, curve, ellipse, ribbon, srgb, within, without
from .head import Head
from .makeup import Makeup
from .scene import Scene

_LEFT = {part: labels.index(f'l_{part}') for part in ('eye', 'brow', 'ear')}
_RIGHT = {part: labels.index(f'r_{part}') for part in ('eye', 'brow', 'ear')}
_SKIN, _NOSE, _MOUTH = labels.index('skin'), labels.index('nose'), labels.index('mouth')
_UPPER_LIP, _LOWER_LIP = labels.index('u_lip'), labels.index('l_lip')


def _sides(part: str) -> tuple[tuple[int, int], tuple[int, int]]:
  """(sign of x, label): the subject's left is on the picture's right."""
  return (1, _LEFT[part]), (-1, _RIGHT[part])


def paint_skin(canvas: Canvas, head: Head, scene: Scene, makeup: Makeup | None) -> Patch:
  """The head's skin with its blotches, freckles and beard, and the makeup that lies on skin."""
  skin, features = scene.skin, scene.features
  patch = canvas.cover(head.outline())
  at = lambda terms: _resized(head.over_face(terms), canvas.size)[patch.rows, patch.columns]
  x = _resized(head.x, canvas.size)[patch.rows, patch.columns]
  y = _resized(head.y, canvas.size)[patch.rows, patch.columns]
  color = np.empty((3, *patch.cover.shape), np.float32)
  nose, mouth = features.nose_y, features.mouth_y
  flush = at([
    (0.8, 0.55, 0.22, 0.45, 0.18), (0.9, 0, 0.15, nose, 0.11), (0.35, 0, 0.3, 1.45, 0.14), (0.55, features.eye_x, 0.2, 0.08, 0.09),
    (0.25, 0, 0.5, -0.7, 0.2),
  ])  # fmt: skip
  blotches = tiles.sample(tiles.clouds, x * 0.45 + skin.offset, y * 0.45)
  pores = tiles.sample(tiles.grain, x * 0.22, y * 0.22 + skin.offset)
  even = 1 - (0.8 * makeup.foundation if makeup else 0.0)
  lift = 1 + (makeup.foundation_lift if makeup else 0.0)
  red = even * skin.redness * (flush + 0.25 * blotches)
  tone = lift * (1 + even * (0.035 * blotches + 0.022 * pores))
  if skin.freckles:
    spots = tiles.sample(tiles.grain, x * 0.11, y * 0.11 + skin.offset)
    tone -= even * skin.freckles * 0.5 * clip(spots - 1.1, 0, 0.7) * clip(flush * 1.5, 0, 1)
  for plane, base, give in zip(color, skin.color, (0.05, -0.16, -0.13), strict=True):
    np.multiply(tone, base, out=plane)
    plane *= 1 + give * red
  # Tired, darker skin round the eyes.
  hollow = at([(1.0, features.eye_x - 0.05, 0.17, 0.13, 0.06), (0.6, features.eye_x, 0.2, -0.09, 0.07)])
  hollow *= even * (0.10 + 0.14 * scene.shape.age)
  color *= 1 - hollow
  if skin.beard or skin.stubble:
    _beard(color, at, x, y, scene)
  if makeup:
    blush = clip(at([(1.0, 0.62, 0.20, 0.42, 0.13)]), 0, 1) * makeup.blush_opacity
    shadow = at([(0.9, features.eye_x + 0.03, 0.18, -0.085, 0.062), (0.5, features.eye_x + 0.16, 0.10, -0.05, 0.06)])
    shadow = clip(1.15 * shadow, 0, 1) * makeup.shadow_opacity
    for opacity, pigment in ((blush, makeup.blush), (shadow, makeup.shadow)):
      # Pigment tints the skin below it rather than hiding it.
      tint = 0.55 * pigment + 0.45 * np.sqrt(pigment * skin.color)
      color += (tint[:, None, None] - color) * opacity
  canvas.paint(patch, color, _SKIN)
  if skin.mole:
    spot = head.on_face(np.array([skin.mole]))[0]
    size = 0.018 * head.pose.scale
    canvas.paint(within(canvas.cover(ellipse(*spot, size, size)), patch), skin.color * 0.25, opacity=0.8)
  return patch


def _resized(plane: np.ndarray, size: int) -> np.ndarray:
  return plane if len(plane) == size else cv2.resize(plane, (size, size), interpolation=cv2.INTER_LINEAR)


def _beard(color: np.ndarray, at, x: np.ndarray, y: np.ndarray, scene: Scene) -> None:
  """Beard or stubble, over the skin colour in place; it grows where the terms say and not on the lips."""
  skin, features = scene.skin, scene.features
  mouth, chin = features.mouth_y, scene.shape.chin_y
  moustache = [(1.2, 0.15, 0.13, mouth - features.upper_lip - 0.085, 0.05), (0.7, features.mouth_width, 0.07, mouth + 0.02, 0.12)]
  goatee = [*moustache, (1.7, 0, 0.22, chin - 0.12, 0.16), (0.8, features.mouth_width - 0.02, 0.08, mouth + 0.15, 0.16)]
  full = [*goatee, (1.5, 0.55, 0.17, 1.28, 0.2), (1.4, 0.80, 0.13, 0.85, 0.22), (1.0, 0.3, 0.25, 1.5, 0.12), (0.7, 0.95, 0.10, 0.4, 0.25)]
  terms = {'full': full, 'goatee': goatee, 'moustache': moustache[:1], '': full}[skin.beard]
  density = at(terms)
  strand = tiles.sample(tiles.strands, x * 0.55 + 0.1 * y * np.sign(x), y * 0.5 + skin.offset)
  hair = scene.hair.color * 0.8
  if skin.beard:
    opacity = clip(density * 1.5 - 0.42 + 0.16 * strand, 0, 0.93)
    hair = hair[:, None, None] * (1 + 0.3 * strand)
  else:
    opacity = clip(density - 0.1, 0, 0.55) * skin.stubble * (0.75 + 0.18 * strand)
    hair = (0.35 * skin.color + 0.4 * hair)[:, None, None]
  color += (hair - color) * opacity


def paint_ear(canvas: Canvas, head: Head, scene: Scene, side: int) -> tuple[np.ndarray, Patch]:
  """One ear (`side` +1: the subject's left) -> its outline, and its patch."""
  features = scene.features
  size = features.ear_size
  # (out from the head, down): a C with a lobe, standing off the side of the head by `ear_out`.
  shape = np.array([(-0.1, -0.02), (0.28, -0.33), (0.75, -0.42), (1.02, -0.15), (0.92, 0.35), (0.62, 0.72), (0.40, 1.18), (0.08, 1.30), (-0.12, 0.95), (-0.15, 0.4)])  # fmt: skip
  out, lean = features.ear_out, 0.12

  def place(points: np.ndarray) -> np.ndarray:
    u, v = points[:, 0] * size, points[:, 1] * size * 0.82
    x = side * (0.955 * scene.shape.cheek + u * (0.25 + 0.55 * out))
    return head.project(x, 0.13 + v, -0.02 - u * (0.9 - 0.4 * out) - v * lean)

  outline = curve(place(shape), closed=True)
  patch = canvas.cover(outline)
  skin = scene.skin.color * np.array([1.02, 0.90, 0.88], np.float32)
  canvas.paint(patch, skin, dict(_sides('ear'))[side])
  inner = curve(place(np.array([(0.10, 0.1), (0.38, -0.15), (0.70, -0.1), (0.68, 0.3), (0.42, 0.62), (0.15, 0.75)])), closed=True)
  canvas.shade(within(canvas.cover(inner), patch), np.array([0.66, 0.54, 0.5]), 0.85)
  ridge = curve(place(np.array([(0.42, 0.75), (0.55, 0.35), (0.48, 0.05), (0.35, -0.12)])))
  canvas.paint(within(canvas.cover(ribbon(ridge, 0.05 * head.pose.scale)), patch), skin * 1.08, opacity=0.7)
  return outline, patch


def paint_nose(canvas: Canvas, head: Head, scene: Scene) -> Patch:
  """Nostrils, the crease round the wings, and the nose's label -> its patch."""
  features = scene.features
  y, width = features.nose_y, features.nose_width
  half = [(0.075, -0.06), (0.085, 0.15), (0.12, y - 0.22), (0.80 * width, y - 0.11), (1.04 * width, y + 0.0), (0.90 * width, y + 0.085), (0.4 * width, y + 0.10)]  # fmt: skip
  outline = np.array([*half, (0, y + 0.135), *((-a, b) for a, b in half[::-1])])
  patch = canvas.cover(curve(head.on_face(outline), closed=True))
  canvas.mark(patch, _NOSE)
  dark = scene.skin.color * np.array([0.30, 0.18, 0.16])
  scale = head.pose.scale
  for side in (1, -1):
    nostril = curve(np.array([(0.22 * width, y + 0.075), (0.40 * width, y + 0.035), (0.66 * width, y + 0.055), (0.55 * width, y + 0.088), (0.36 * width, y + 0.095)]) * (side, 1), closed=True)  # fmt: skip
    canvas.paint(canvas.cover(head.on_face(nostril)), dark, opacity=0.75)
    crease = curve(np.array([(0.86 * width, y - 0.10), (1.05 * width, y - 0.03), (1.02 * width, y + 0.06), (0.80 * width, y + 0.10)]) * (side, 1))
    line = head.on_face(crease)
    canvas.shade(canvas.cover(ribbon(line, np.sin(np.linspace(0.3, 3.0, len(line))) * 0.045 * scale)), np.array([0.72, 0.58, 0.55]), 0.55)
  under = curve(np.array([(-0.5 * width, y + 0.105), (0, y + 0.145), (0.5 * width, y + 0.105)]))
  canvas.shade(canvas.cover(ribbon(head.on_face(under), 0.04 * scale)), np.array([0.75, 0.62, 0.6]), 0.5)
  return patch


def paint_eyes(canvas: Canvas, head: Head, scene: Scene, makeup: Makeup | None, hidden_by: Patch) -> list[Patch]:
  """Both eyes with lids and lashes, where the nose does not hide them -> the patches of their openings."""
  return [_eye(canvas, head, scene, makeup, hidden_by, side, label) for side, label in _sides('eye')]


def _eye(canvas: Canvas, head: Head, scene: Scene, makeup: Makeup | None, hidden_by: Patch, side: int, label: int) -> Patch:
  f, light, scale = scene.features, scene.light, head.pose.scale
  x, w, opening, rise = f.eye_x, f.eye_width, f.eye_open, f.eye_tilt * f.eye_width
  lower_open = 0.62 * opening
  inner, outer = (x - w, 0.35 * rise + 0.012), (x + w, -rise)
  upper = [inner, (x - 0.62 * w, -0.62 * opening), (x - 0.1 * w, -1.06 * opening), (x + 0.45 * w, -0.86 * opening - 0.3 * rise), outer]
  lower = [outer, (x + 0.55 * w, 0.72 * lower_open - 0.5 * rise), (x, lower_open), (x - 0.55 * w, 0.72 * lower_open), inner]
  place = lambda points, dy=0.0: head.on_face((np.asarray(points) + (0, dy)) * (side, 1))
  upper_line, lower_line = (curve(place(points), 7) for points in (upper, lower))
  visible = without(canvas.cover(np.concatenate([upper_line, lower_line])), hidden_by)

  skin = scene.skin.color
  # The fold over the lid, and the lid's own edge in shade.
  fold = place(upper, -0.035 - 0.035 * f.eye_fold)
  taper = np.sin(np.linspace(0.25, 2.9, 29)) * scale
  crease = without(canvas.cover(ribbon(curve(fold, 7), 0.032 * taper)), hidden_by)
  canvas.shade(crease, np.array([0.50, 0.40, 0.38]), 0.3 + 0.5 * f.eye_fold)
  bag = place([(px, py + 0.055) for px, py in lower[1:-1]])
  canvas.shade(canvas.cover(ribbon(curve(bag, 7), 0.022 * scale)), np.array([0.74, 0.64, 0.62]), 0.25 + 0.5 * scene.shape.age)

  canvas.paint(visible, srgb(226, 220, 216), label)
  corner = place([(x - 0.93 * w, 0.012 + 0.3 * rise)])[0]
  canvas.paint(within(canvas.cover(ellipse(*corner, 0.045 * scale, 0.03 * scale)), visible), srgb(206, 142, 132), opacity=0.8)

  center = np.array([side * x + f.gaze[0], -0.16 * opening + f.gaze[1]])
  z = _depth_at(head, center)
  disc = lambda r, dx=0.0, dy=0.0: head.project(
    center[0] + dx + r * _UNIT[:, 0], center[1] + dy + r * _UNIT[:, 1], np.full(len(_UNIT), z)
  )
  radius = f.iris_radius
  canvas.paint(within(canvas.cover(disc(1.06 * radius)), visible), f.iris * 0.22)
  canvas.paint(within(canvas.cover(disc(0.88 * radius)), visible), f.iris * 0.85)
  # The cornea gathers light opposite to where it comes from.
  canvas.paint(within(canvas.cover(disc(0.55 * radius, -0.3 * radius * light.toward[0], 0.35 * radius)), visible), f.iris * 1.7 + 0.01, opacity=0.55)
  canvas.paint(within(canvas.cover(disc(0.44 * radius)), visible), srgb(10, 8, 8))

  # The upper lid and its lashes shade the ball below them; the ball turns away at both corners.
  canvas.shade(within(canvas.cover(ribbon(upper_line, 0.085 * scale)), visible), np.array([0.42, 0.38, 0.38]), 0.75)
  canvas.shade(within(canvas.cover(ribbon(lower_line, 0.035 * scale)), visible), np.array([0.72, 0.62, 0.6]), 0.6)
  for end, reach in ((upper_line[-1], 0.09), (upper_line[0], 0.06)):
    canvas.shade(within(canvas.cover(ellipse(*end, reach * scale, reach * scale)), visible), np.array([0.7, 0.6, 0.58]), 0.7)

  glint = (0.42 * radius * float(np.sign(light.toward[0]) or 1) * 0.9, -0.42 * radius)
  canvas.paint(within(canvas.cover(disc(0.23 * radius, *glint)), visible), np.full(3, 2.2), opacity=0.95)
  canvas.paint(within(canvas.cover(disc(0.13 * radius, -glint[0], 0.5 * radius)), visible), np.full(3, 1.2), opacity=0.5)

  strength = min(f.lash + (0.5 * makeup.lash if makeup else 0), 1.25)
  liner = makeup.liner if makeup else 0.0
  ink = srgb(14, 10, 10) if makeup else 0.5 * srgb(14, 10, 10) + 0.12 * skin
  swell = np.linspace(0.5, 1.15, 29) * np.sin(np.linspace(0.6, 2.75, 29))
  lid = without(canvas.cover(ribbon(upper_line + (0, -0.006 * scale), (0.030 + 0.022 * strength + 0.03 * liner) * swell * scale)), hidden_by)
  canvas.paint(lid, ink, opacity=min(0.62 + 0.35 * strength, 1))
  rim = without(canvas.cover(ribbon(lower_line, 0.016 * scale)), hidden_by)
  canvas.paint(rim, skin * np.array([0.42, 0.24, 0.22]), opacity=0.55 + 0.3 * liner)

  base = upper_line[np.linspace(5, 27, 9).astype(int)]
  t = np.linspace(-0.35, 1.1, 9)[:, None]
  length = (0.05 + 0.05 * strength) * scale
  tips = base + length * np.concatenate([side * t * 0.9, -1.0 + 0.35 * np.abs(t)], axis=1)
  bend = (base + tips) / 2 + length * 0.16 * np.array([side, 0.6])
  lashes = without(canvas.strokes(list(np.stack([base, bend, tips], axis=1)), 0.011 * scale), hidden_by)
  canvas.paint(lashes, ink, opacity=min(0.35 + 0.5 * strength, 0.95))
  return visible


_UNIT = ellipse(0, 0, 1, 1)


def _depth_at(head: Head, point: np.ndarray) -> float:
  """z of the bare section at a face point, plus what an eyeball stands out."""
  width, depth, center = head.sections(point[1])
  return float(center + depth * np.sqrt(max(1 - (point[0] / width) ** 2, 0.0)) - 0.02)


def paint_brows(canvas: Canvas, head: Head, scene: Scene, makeup: Makeup | None, strokes: np.ndarray) -> list[Patch]:
  """Both brows, hair by hair; `strokes` uniform [N, 3] places the hairs -> patches of the brows."""
  f, scale = scene.features, head.pose.scale
  x, y, thick = f.eye_x, f.brow_y, f.brow_thick
  strength = makeup.brow if makeup else 0.0
  grey = 0.5 * scene.hair.color if scene.hair.style != 'bald' else srgb(52, 38, 32)
  ink = np.minimum(0.65 * scene.hair.color + 0.15 * grey, 0.30) * (1 - 0.35 * strength)
  spine = np.array([
    (x - 0.27, y + 0.035 - f.brow_tilt), (x - 0.12, y - 0.25 * f.brow_arch), (x + 0.08, y - f.brow_arch),
    (x + 0.24, y - 0.8 * f.brow_arch + 0.02), (x + 0.37, y + 0.055 + f.brow_tilt),
  ])  # fmt: skip
  line = curve(spine, 6)
  along = np.linspace(0, 1, len(line))
  half = thick / 2 * np.interp(along, [0, 0.12, 0.5, 0.8, 1], [0.55, 0.95, 1.0, 0.62, 0.12])
  patches = []
  for side, label in _sides('brow'):
    top, bottom = line - np.stack([0 * half, half], 1), line + np.stack([0 * half, half], 1)
    patch = canvas.cover(head.on_face(np.concatenate([top, bottom[::-1]]) * (side, 1)))
    canvas.paint(patch, ink, label, opacity=0.45 * f.brow_density + 0.2 * strength)
    at = strokes[:, 0] * (len(line) - 1.001)
    i = at.astype(int)
    root = line[i] + (at - i)[:, None] * (line[i + 1] - line[i])
    room = np.interp(strokes[:, 0], along, half)
    start = root + np.stack([0 * room, room * (1.7 * strokes[:, 1] - 0.55)], 1)
    rise = np.interp(strokes[:, 0], [0, 0.25, 0.7, 1], [1.25, 0.75, 0.15, -0.35]) + 0.4 * (strokes[:, 2] - 0.5)
    end = start + 0.085 * np.stack([np.cos(rise), -np.sin(rise)], 1)
    ends = head.on_face(np.concatenate([start, end]) * (side, 1)).reshape(2, -1, 2)
    hairs = canvas.strokes(list(ends.transpose(1, 0, 2)), 0.014 * scale)
    canvas.paint(hairs, ink * 0.8, opacity=0.35 + 0.45 * f.brow_density + 0.15 * strength)
    patches.append(patch)
  return patches


def paint_mouth(canvas: Canvas, head: Head, scene: Scene, makeup: Makeup | None) -> Patch:
  """Lips, and teeth and tongue behind them where the mouth is open -> the patch of both lips."""
  f, scale = scene.features, head.pose.scale
  y, w, gape, smile = f.mouth_y, f.mouth_width, f.gape, f.smile
  corner_y = y + 0.3 * gape - 0.075 * smile
  peak, dip = y - f.upper_lip, y - f.upper_lip * (1 - 0.28 * f.cupid)
  droop = 0.018 * (1 - smile)
  half_top = [(-w, corner_y), (-0.60 * w, y - 0.62 * f.upper_lip - 0.02 * smile), (-0.18 * w, peak)]
  top = curve(np.array([*half_top, (0, dip), *((-a, b) for a, b in half_top[::-1])]), 6)
  seam_top = curve(np.array([(-w, corner_y), (-0.55 * w, y + 0.012 - 0.2 * droop + 0.1 * smile * 0.1), (0, y + 0.016), (0.55 * w, y + 0.012 - 0.2 * droop), (w, corner_y)]), 6)
  low = y + gape
  seam_low = curve(np.array([(-w, corner_y), (-0.55 * w, low - 0.22 * gape + 0.010), (0, low + 0.018), (0.55 * w, low - 0.22 * gape + 0.010), (w, corner_y)]), 6)
  bottom = curve(np.array([(-w, corner_y), (-0.58 * w, low + 0.60 * f.lower_lip - 0.12 * gape), (-0.2 * w, low + f.lower_lip), (0.2 * w, low + f.lower_lip), (0.58 * w, low + 0.60 * f.lower_lip - 0.12 * gape), (w, corner_y)]), 6)
  top, seam_top, seam_low, bottom = (head.on_face(line) for line in (top, seam_top, seam_low, bottom))

  lip = scene.skin.lip
  if makeup:
    lip = lip + (makeup.lip - lip) * makeup.lip_opacity
  upper = canvas.cover(np.concatenate([top, seam_top[::-1]]))
  lower = canvas.cover(np.concatenate([seam_low, bottom[::-1]]))
  if gape:
    _cavity(canvas, head, scene, seam_top, seam_low)
  canvas.paint(upper, lip * 0.86, _UPPER_LIP, opacity=0.94)
  canvas.paint(lower, lip, _LOWER_LIP, opacity=0.94)
  # Fuller light where the lower lip rolls out, shade where the lips meet and below them.
  middle = (0.55 * seam_low[6:-6] + 0.45 * bottom[len(bottom) // 2 - len(seam_low[6:-6]) // 2 :][: len(seam_low[6:-6])])
  canvas.paint(canvas.cover(ribbon(middle, 0.03 * scale * np.sin(np.linspace(0.2, 2.94, len(middle))))), np.minimum(lip * 1.45 + 0.02, 1), opacity=0.35)
  edge = np.sin(np.linspace(0.12, 3.02, len(seam_top)))
  dark = lip * np.array([0.22, 0.12, 0.14])
  canvas.paint(canvas.cover(ribbon(seam_top, (0.02 + 0.012 * edge) * scale)), dark, opacity=0.85 if not gape else 0.5)
  rows = slice(min(upper.rows.start, lower.rows.start), max(upper.rows.stop, lower.rows.stop))
  columns = slice(min(upper.columns.start, lower.columns.start), max(upper.columns.stop, lower.columns.stop))
  both = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.float32)
  for patch in (upper, lower):
    box = (slice(patch.rows.start - rows.start, patch.rows.stop - rows.start),
           slice(patch.columns.start - columns.start, patch.columns.stop - columns.start))  # fmt: skip
    np.maximum(both[box], patch.cover, out=both[box])
  return Patch(rows, columns, both)


def _cavity(canvas: Canvas, head: Head, scene: Scene, seam_top: np.ndarray, seam_low: np.ndarray) -> None:
  """The open mouth: dark inside, tongue, upper teeth with their gaps, sometimes lower ones."""
  scale, gape = head.pose.scale, scene.features.gape
  hole = canvas.cover(np.concatenate([seam_top, seam_low[::-1]]))
  canvas.paint(hole, srgb(58, 16, 18), _MOUTH)
  tongue = 0.25 * seam_top[5:-5] + 0.75 * seam_low[5:-5]
  canvas.paint(within(canvas.cover(np.concatenate([tongue, seam_low[5:-5][::-1]])), hole), srgb(150, 66, 66), opacity=0.7)
  reach = min(0.88, 0.10 / (gape + 0.02))
  teeth_low = seam_top + (seam_low - seam_top) * reach
  edge = slice(2, -2)
  band = within(canvas.cover(np.concatenate([seam_top[edge], teeth_low[edge][::-1]])), hole)
  canvas.paint(band, srgb(232, 224, 212))
  count = len(seam_top)
  mouth_middle, spread = (count - 1) / 2, count / 11
  gaps = [np.stack([a, b]) for k in range(-4, 5) for i in [round(mouth_middle + k * spread)] for a, b in [(seam_top[i], teeth_low[i])]]
  canvas.shade(within(canvas.strokes(gaps, 0.008 * scale), band), np.array([0.55, 0.45, 0.4]), 0.6)
  canvas.shade(within(canvas.cover(ribbon(seam_top, 0.05 * scale)), hole), np.array([0.45, 0.35, 0.35]), 0.7)
  for end in (seam_top[0], seam_top[-1]):
    canvas.shade(within(canvas.cover(ellipse(*end, 0.13 * scale, 0.13 * scale)), hole), np.array([0.40, 0.28, 0.26]), 0.8)
