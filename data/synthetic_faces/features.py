"""Brows, eyes, nose and mouth: drawn in face coordinates, projected together, inked at four samples a pixel."""

import math

import numpy as np

from jaxface import labels

from .canvas import Canvas, Curves, ellipse, ribbon, srgb
from .head import Head
from .ink import Ink
from .makeup import Makeup
from .scene import Features, Scene

_NOSE, _MOUTH = labels.index('nose'), labels.index('mouth')
_UPPER_LIP, _LOWER_LIP = labels.index('u_lip'), labels.index('l_lip')
# What comes in pairs is the subject's left, which is on the picture's right, and then its mirror image.
_EYES = labels.index('l_eye'), labels.index('r_eye')
_BROWS = labels.index('l_brow'), labels.index('r_brow')
_MIRROR = np.array([-1, 1], np.float32)

_UNIT = ellipse(0, 0, 1, 1, count=20)
# A unit circle, and the unit vectors across the face and down it.
_PLATE = np.concatenate([_UNIT, np.eye(2, dtype=np.float32)])
_CORNER = ellipse(0, 0, 0.05, 0.04, count=12)
# Lines that swell and taper are drawn together, so they have the same number of points.
_POINTS = 17
_SIDES = Curves({
  'brow': (5, 4, False), 'upper': (5, 4, False), 'lower': (5, 4, False), 'gaze': (1, 1, False),
  'nostril': (6, 3, True), 'wing': (4, 4, False), 'laugh': (4, 5, False),
})  # fmt: skip
_MIDDLE = Curves({
  'nose': (15, 2, True), 'under_nose': (3, 5, False), 'upper_lip': (7, 4, False), 'seam': (5, 4, False),
  'open_low': (5, 4, False), 'lower_lip': (7, 4, False), 'below_lip': (5, 4, False), 'roll': (3, 8, False),
})  # fmt: skip
_BROW_TAPER = np.interp(np.linspace(0, 1, _POINTS), [0, 0.12, 0.5, 0.8, 1], [0.6, 0.95, 1.0, 0.66, 0.15])
_BROW_TAPER = _BROW_TAPER.astype(np.float32)
_ALONG = np.linspace(0, np.pi, _POINTS, dtype=np.float32)
# Profiles of lines that swell and taper.
_LID_SWELL = np.sin(0.35 + 0.78 * _ALONG) * np.linspace(0.55, 1.15, _POINTS, dtype=np.float32)
_LID_TAPER, _LIP_TAPER = np.sin(0.25 + 0.843 * _ALONG), np.sin(0.15 + 0.904 * _ALONG)
# Of the lids, the folds above them, the roll of the lower lip, twice, and the line between the lips.
_SWELLING = np.stack([_LID_SWELL, _LID_SWELL, _LID_TAPER, _LID_TAPER, _LIP_TAPER, _LIP_TAPER, _LIP_TAPER])
_BOTH = np.array([1, -1], np.float32)
_SPREAD = np.linspace(-0.1, 1.0, 8, dtype=np.float32)
# Directions of the lashes, [2, 8, 2], and which way they bend, [2, 1, 2].
_LASH_FAN = np.stack(np.broadcast_arrays(_BOTH[:, None] * (0.15 + 0.9 * _SPREAD), -1.0 + 0.25 * _SPREAD), axis=-1)
_LASH_BEND = np.array([[[1, 0.7]], [[-1, 0.7]]], np.float32)
_GAZE_BACK = np.array([[[0, 0]], [[2, 0]]], np.float32)
_CARUNCLE_IN = np.array([[[0.02, 0]], [[-0.02, 0]]], np.float32)
_SCLERA = srgb(214, 206, 202)
_CARUNCLE = srgb(196, 128, 118)
_PUPIL = srgb(8, 6, 6)
_WHITE = np.ones(3, np.float32)
_BALD_BROW = srgb(52, 38, 32)
_INK = srgb(16, 11, 10)
_CAVITY = srgb(52, 14, 16)
_TONGUE = srgb(128, 52, 54)
_TOOTH_EDGE = srgb(176, 160, 150)
_TOOTH = srgb(226, 218, 206)
_TOOTH_GAP = srgb(164, 148, 138)
_TOOTH_SHADE = srgb(96, 60, 58)
# Points of the mouth's seam above which two teeth meet.
_GAPS = np.array([3, 4, 5, 6, 8, 10, 11, 12, 13])
_LID_SHADE = 0.30 * np.array([0.5, 0.42, 0.42], np.float32)
_LID_EDGE = np.array([0.46, 0.27, 0.25], np.float32)
_NOSTRIL = np.array([0.16, 0.075, 0.06], np.float32)
_LIP_SEAM = np.array([0.16, 0.08, 0.09], np.float32)


def paint_features(canvas: Canvas, head: Head, scene: Scene, makeup: Makeup | None, strokes: np.ndarray) -> None:
  """Inks the whole face. `strokes` uniform [N, 3] places the hairs of a brow."""
  features, scale = scene.features, head.pose.scale
  left = _SIDES.points(_side_lines(features))
  projected = head.on_face(np.concatenate([left, left * _MIRROR, _MIDDLE.points(_middle_lines(features))]))
  ink = Ink(canvas, projected, 0.1 * scale)
  unit = ink.length(scale)
  plate = head.foreshortened(_PLATE) * unit
  points = ink.points(projected)
  # The subject's left, then its mirror image: [2, N, 2].
  pairs, middle = points[: 2 * len(left)].reshape(2, -1, 2), points[None, 2 * len(left) :]
  traced = {name: pairs[:, part] for name, part in _SIDES.parts.items()}
  traced |= {name: middle[:, part] for name, part in _MIDDLE.parts.items()}
  traced |= _swelling(traced, unit, plate[-1], scene, makeup)
  if scene.skin.mole:
    spot = ink.points(head.on_face(np.array([scene.skin.mole])))
    ink.fill(spot + _UNIT[None] * (0.018 * unit), scene.skin.color * 0.3, 0.8)
  _ink_eyes(ink, unit, plate, scene, makeup, traced)
  _ink_brows(ink, unit, plate, scene, makeup, traced['brow'], strokes)
  _ink_nose(ink, unit, scene, traced)
  _ink_mouth(ink, unit, scene, makeup, traced)
  ink.apply(blur=0.06 * scale)


def _swelling(traced: dict, unit: float, down: np.ndarray, scene: Scene, makeup: Makeup | None) -> dict:
  """Outlines of the lines that swell and taper: they cost little when they are made together."""
  f = scene.features
  lash, liner = _lashes(scene, makeup)
  upper, roll, seam = traced['upper'], traced['roll'], traced['seam']
  lid, fold = upper - 0.004 * down, upper - (0.03 + 0.04 * f.eye_fold) * down
  # Widths at the middle of the line, and what does not taper.
  roll_width = 0.42 * f.lower_lip
  lid_width = 0.026 + 0.018 * lash + 0.03 * liner
  seam_width = 0.012 if f.gape else 0.020
  swell = np.array([lid_width, lid_width, 0.034, 0.034, roll_width, 0.4 * roll_width, seam_width], np.float32)
  widths = (unit * swell)[:, None] * _SWELLING
  widths[-1] += 0.010 * unit
  outlines = ribbon(np.concatenate([lid, fold, roll, roll, seam]), widths)
  return {'lid': outlines[:2], 'fold': outlines[2:4], 'rolls': outlines[4:6], 'shut': outlines[6:]}


def _lashes(scene: Scene, makeup: Makeup | None) -> tuple[float, float]:
  """Strength of the lashes, and of the line at their roots."""
  return (scene.features.lash + 0.5 * makeup.lash, makeup.liner) if makeup else (scene.features.lash, 0.0)


def _side_lines(f: Features) -> list[tuple[float, float]]:
  """Control points of `_SIDES`."""
  x, y, arch = f.eye_x, f.brow_y, f.brow_arch
  brow = [
    (x - 0.27, y + 0.035 - f.brow_tilt), (x - 0.12, y - 0.25 * arch), (x + 0.08, y - arch),
    (x + 0.24, y - 0.8 * arch + 0.02), (x + 0.36, y + 0.055 + f.brow_tilt),
  ]  # fmt: skip
  w, opening, rise = f.eye_width, f.eye_open, f.eye_tilt * f.eye_width
  low = 0.60 * opening
  inner, outer = (x - w, 0.35 * rise + 0.014), (x + w, -rise)
  upper = [
    inner, (x - 0.62 * w, -0.64 * opening), (x - 0.12 * w, -1.06 * opening),
    (x + 0.45 * w, -0.88 * opening - 0.3 * rise), outer,
  ]  # fmt: skip
  lower = [outer, (x + 0.55 * w, 0.74 * low - 0.5 * rise), (x, low), (x - 0.55 * w, 0.74 * low), inner]
  gaze = (x + f.gaze[0], f.eye_y + f.gaze[1])
  y, w = f.nose_y, f.nose_width
  nostril = [
    (0.20 * w, y + 0.085), (0.36 * w, y + 0.045), (0.60 * w, y + 0.050), (0.66 * w, y + 0.078), (0.50 * w, y + 0.095),
    (0.32 * w, y + 0.100),
  ]  # fmt: skip
  wing = [(0.84 * w, y - 0.11), (1.04 * w, y - 0.04), (1.02 * w, y + 0.05), (0.80 * w, y + 0.10)]
  end = f.mouth_width + 0.05
  laugh = [(1.12 * w, y - 0.02), (1.35 * w, y + 0.12), (end, f.mouth_y - 0.16), (end + 0.02, f.mouth_y - 0.02)]
  return [*brow, *upper, *lower, gaze, *nostril, *wing, *laugh]


def _middle_lines(f: Features) -> list[tuple[float, float]]:
  """Control points of `_MIDDLE`."""
  y, w = f.nose_y, f.nose_width
  wing = [(-0.9 * w, y + 0.085), (-1.04 * w, y), (-0.80 * w, y - 0.11)]
  side = [(-0.4 * w, y + 0.105), *wing, (-0.12, y - 0.22), (-0.085, 0.15), (-0.075, -0.06)]
  nose = [(0, y + 0.135), *side, *_mirrored(side)]
  under = [(-0.55 * w, y + 0.105), (0, y + 0.145), (0.55 * w, y + 0.105)]
  y, w, gape, smile = f.mouth_y, f.mouth_width, f.gape, f.smile
  corner = (-w, y + 0.35 * gape - 0.018 - 0.065 * smile)
  top, full, low = y - f.upper_lip, f.lower_lip, y + gape
  lines = [
    ([corner, (-0.62 * w, y - 0.58 * f.upper_lip - 0.02 * smile), (-0.17 * w, top)],
     top + 0.25 * f.cupid * f.upper_lip),
    ([corner, (-0.52 * w, y + 0.001 + 0.01 * smile)], y + 0.018),
    ([corner, (-0.58 * w, low - 0.26 * gape + 0.006)], low + 0.022),
    ([corner, (-0.60 * w, low + 0.58 * full - 0.16 * gape), (-0.22 * w, low + full)], low + 1.02 * full),
    ([(-0.62 * w, low + 0.95 * full + 0.035), (-0.3 * w, low + full + 0.06)], low + full + 0.07),
    ([(-0.45 * w, low + 0.42 * full - 0.10 * gape)], low + 0.46 * full + 0.01),
  ]  # fmt: skip
  return [*nose, *under, *(point for half, at in lines for point in (*half, (0, at), *_mirrored(half)))]


def _mirrored(half: list[tuple[float, float]]) -> list[tuple[float, float]]:
  return [(-x, y) for x, y in half[::-1]]


def _ink_brows(
  ink: Ink, unit: float, plate: np.ndarray, scene: Scene, makeup: Makeup | None, spine: np.ndarray, strokes: np.ndarray
) -> None:
  features, across, down = scene.features, plate[-2], plate[-1]
  strength = makeup.brow if makeup else 0.0
  hair = scene.hair.color if scene.hair.style != 'bald' else _BALD_BROW
  color = (np.minimum(0.6 * hair, 0.16) + 0.10 * scene.skin.color) * (1 - 0.5 * strength)
  half = features.brow_thick / 2 * _BROW_TAPER
  drop = half[:, None] * down
  ink.fill(_between(spine - drop, spine + drop), color, 0.42 * features.brow_density + 0.2 * strength, _BROWS)
  # Hairs rise at the inner end and lie down at the outer one.
  along = strokes[:, 0]
  at = along * (_POINTS - 1.001)
  i = at.astype(int)
  fall = half[i] * (1.9 * strokes[:, 1] - 0.55)
  start = spine[:, i]
  root = start + (at - i)[:, None] * (spine[:, i + 1] - start) + fall[:, None] * down
  rise = np.interp(along, [0, 0.25, 0.7, 1], [1.2, 0.65, 0.10, -0.40]) + 0.4 * (strokes[:, 2] - 0.5)
  length = 0.0825 - 0.03 * along
  out = (length * np.cos(rise))[:, None] * across
  tip = root + _BOTH[:, None, None] * out - (length * np.sin(rise))[:, None] * down
  hairs = np.concatenate([root, tip], axis=-1).reshape(-1, 2, 2)
  opacity = min(0.45 + 0.4 * features.brow_density + 0.2 * strength, 0.95)
  ink.strokes(hairs, 0.016 * unit, 0.85 * color, opacity)


def _ink_eyes(ink: Ink, unit: float, plate: np.ndarray, scene: Scene, makeup: Makeup | None, traced: dict) -> None:
  f, light, skin = scene.features, scene.light, scene.skin.color
  upper, lower = traced['upper'], traced['lower']
  opening = np.concatenate([upper, lower[:, 1:-1]], axis=1)
  # Gaze is the same way for both eyes, though the tracing mirrors it.
  center = traced['gaze'] + _GAZE_BACK * (f.gaze[0] * unit)
  toward = float(light.toward[0])
  # Radius, x, y in iris radii. The cornea gathers light on the side away from where it comes.
  discs = np.array([
    (1.04, 0, 0), (0.88, 0, 0), (0.66, -0.16 * toward, 0.20), (0.42, 0, 0),
    (0.22, math.copysign(0.40, toward), -0.36),
  ], np.float32)[:, None] * f.iris_radius  # fmt: skip
  discs = (discs[..., :1] * plate[:-2] + discs[..., 1:] * unit)[:, None] + center

  ink.fill(opening, _SCLERA, 1.0, _EYES)
  ink.fill(upper[:, :1] + _CARUNCLE_IN * unit + _UNIT * (0.032 * unit), _CARUNCLE)
  for disc, color in zip(discs, (f.iris * 0.20, f.iris * 0.62, f.iris * 1.25, _PUPIL), strict=False):
    ink.fill(disc, color)
  # The ball below the upper lid lies in its shade.
  ink.strokes(upper, 0.055 * unit, _LID_SHADE * (skin + f.iris), 0.72)
  ink.fill(discs[4], _WHITE)
  ink.keep_inside(opening)

  lash, liner = _lashes(scene, makeup)
  dark = _INK * (1.0 if makeup else 1.6) + (0.0 if makeup else 0.06) * skin
  ink.strokes(lower, 0.015 * unit, skin * _LID_EDGE * (1 - 0.5 * liner), 0.65 + 0.3 * liner)
  ink.fill(traced['lid'], dark, min(0.78 + 0.2 * lash, 1.0))
  # Roots of the lashes: the outer part of the lid.
  base = upper[:, 7:15]
  tips = base + (0.028 + 0.038 * lash) * unit * _LASH_FAN
  bend = (base + tips) / 2 + 0.009 * unit * _LASH_BEND
  ink.strokes(
    np.concatenate([base, bend, tips], axis=-1).reshape(-1, 3, 2), 0.009 * unit, dark, min(0.45 + 0.5 * lash, 1.0)
  )

  ink.shade(traced['fold'], 0.35 + 0.5 * f.eye_fold)
  ink.shade_lines(lower[:, 2:-2] + 0.06 * plate[-1], 0.020 * unit, 0.12 + 0.33 * scene.shape.age)
  ink.shade_lines(upper[:, 2:-2], 0.04 * unit, 0.30)


def _ink_nose(ink: Ink, unit: float, scene: Scene, traced: dict) -> None:
  # Clears what it hides of the far eye, and keeps the skin that is there.
  ink.fill(traced['nose'], _WHITE, 0.0, (_NOSE,))
  lines = 0.10 + 0.22 * max(scene.features.smile, 0) + 0.25 * scene.shape.age
  ink.fill(traced['nostril'], scene.skin.color * _NOSTRIL, 0.72)
  ink.shade_lines(traced['wing'][:, 1:-1], 0.038 * unit, 0.42)
  ink.shade_lines(traced['laugh'][:, 2:-2], 0.024 * unit, lines)
  ink.shade_lines(traced['under_nose'], 0.04 * unit, 0.35)


def _ink_mouth(ink: Ink, unit: float, scene: Scene, makeup: Makeup | None, traced: dict) -> None:
  f, lip = scene.features, scene.skin.lip
  if makeup:
    lip = lip + (makeup.lip - lip) * makeup.lip_opacity
  upper, seam, open_low, lower = (traced[name] for name in ('upper_lip', 'seam', 'open_low', 'lower_lip'))
  if f.gape:
    _ink_cavity(ink, unit, seam, open_low, f.gape)
  ink.fill(_between(upper, seam), lip * 0.80, 0.93, (_UPPER_LIP,))
  ink.fill(_between(open_low, lower), lip, 0.93, (_LOWER_LIP,))
  # Light gathers where the lower lip rolls out.
  ink.fill(traced['rolls'][:1], lip * 1.16 + 0.006, 0.93)
  ink.fill(traced['rolls'][1:], lip * 1.34 + 0.014, 0.93)
  ink.fill(traced['shut'], lip * _LIP_SEAM, 0.92)
  ink.shade(seam[0, :: _POINTS - 1, None] + _CORNER * unit, 0.40)
  ink.shade_lines(traced['below_lip'][:, 2:-2], 0.045 * unit, 0.38)


def _between(one: np.ndarray, other: np.ndarray) -> np.ndarray:
  """Outlines of what lies between lines [..., N, 2] that run the same way."""
  return np.concatenate([one, other[..., ::-1, :]], axis=-2)


def _ink_cavity(ink: Ink, unit: float, seam: np.ndarray, low: np.ndarray, gape: float) -> None:
  """The open mouth: dark inside, tongue, upper teeth with their gaps."""
  teeth = seam + (low - seam) * min(0.85, 0.11 / (gape + 0.02))
  ink.fill(_between(seam, low), _CAVITY, 1.0, (_MOUTH,))
  tongue = 0.3 * seam[:, 4:-4] + 0.7 * low[:, 4:-4]
  ink.fill(_between(tongue, low[:, 4:-4]), _TONGUE)
  ink.fill(_between(seam[:, 1:-1], teeth[:, 1:-1]), _TOOTH_EDGE)
  ink.fill(_between(seam[:, 3:-3], teeth[:, 3:-3]), _TOOTH)
  ink.strokes(np.concatenate([seam[0, _GAPS], teeth[0, _GAPS]], axis=-1).reshape(-1, 2, 2), 0.007 * unit, _TOOTH_GAP)
  ink.strokes(seam, 0.034 * unit, _TOOTH_SHADE)
