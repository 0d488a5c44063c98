"""Brows, eyes, nose and mouth: drawn in face coordinates, projected together, inked at four samples a pixel."""

import numpy as np

from jaxface import labels

from .canvas import Canvas, curve, ellipse, moved, ribbon, srgb
from .head import Head
from .ink import Ink
from .makeup import Makeup
from .scene import Features, Scene

_NOSE, _MOUTH = labels.index('nose'), labels.index('mouth')
_UPPER_LIP, _LOWER_LIP = labels.index('u_lip'), labels.index('l_lip')
# The subject's left is on the picture's right.
_EYES = {1: labels.index('l_eye'), -1: labels.index('r_eye')}
_BROWS = {1: labels.index('l_brow'), -1: labels.index('r_brow')}

_UNIT = ellipse(0, 0, 1, 1, count=24)
_BROW_SPINE = 25
_ALONG_BROW = np.linspace(0, 1, _BROW_SPINE)
# Profiles of lines that swell and taper, over the points of the curve they are for.
_LID_SWELL = np.sin(np.linspace(0.35, 2.8, 29, dtype=np.float32)) * np.linspace(0.55, 1.15, 29, dtype=np.float32)
_LID_TAPER = np.sin(np.linspace(0.25, 2.9, 29, dtype=np.float32))
_ROLL_TAPER = np.sin(np.linspace(0.15, 2.99, 17, dtype=np.float32))
_SEAM_TAPER = np.sin(np.linspace(0.15, 2.99, 25, dtype=np.float32))
_LASH_FAN = np.linspace(-0.1, 1.0, 8, dtype=np.float32)[:, None]
_SCLERA = srgb(214, 206, 202)
_SCLERA_EDGE = srgb(182, 160, 154)
_CARUNCLE = srgb(196, 128, 118)
_PUPIL = srgb(8, 6, 6)
_INK = srgb(16, 11, 10)
_CAVITY = srgb(52, 14, 16)
_TONGUE = srgb(128, 52, 54)
_TOOTH_EDGE = srgb(176, 160, 150)
_TOOTH = srgb(226, 218, 206)
_TOOTH_GAP = srgb(164, 148, 138)
_TOOTH_SHADE = srgb(96, 60, 58)
# What full shade leaves of red, green and blue light: creases of skin glow red.
_CREASE = np.array([0.42, 0.30, 0.28], np.float32)


def paint_features(canvas: Canvas, head: Head, scene: Scene, makeup: Makeup | None, strokes: np.ndarray) -> np.ndarray:
  """Inks the whole face -> outline of the lips (picture units). `strokes` uniform [N, 3] places the hairs of a brow."""
  features = scene.features
  flat = _brow_curves(features, strokes) | _eye_curves(features) | _nose_curves(features) | _mouth_curves(features)
  points, traced = _trace(head, flat)
  ink = Ink(canvas, np.stack([points.min(0) - 0.02, points.max(0) + 0.02]))
  lips = traced['lips']
  traced = {name: ink.points(line) for name, line in traced.items()}
  unit = ink.length(head.pose.scale)
  plate = head.foreshortened(_UNIT)
  for side in (1, -1):
    _ink_eye(ink, unit, plate, scene, makeup, traced, side)
    _ink_brow(ink, unit, scene, makeup, traced, side)
  _ink_nose(ink, unit, scene, traced)
  _ink_mouth(ink, unit, scene, makeup, traced)
  ink.apply(_CREASE, blur=0.06 * head.pose.scale)
  return lips


def _trace(head: Head, flat: dict) -> tuple[np.ndarray, dict]:
  """Projects all curves in one go -> all points, and the curves by name.

  A curve under ('name', 1) is the subject's left one; its mirror image comes under ('name', -1).
  """
  both = dict(flat)
  for key, points in flat.items():
    if isinstance(key, tuple):
      both[key[0], -1] = points * np.array([-1, 1], np.float32)
  projected = head.on_face(np.concatenate(list(both.values())))
  ends = np.cumsum([len(points) for points in both.values()])[:-1]
  return projected, dict(zip(both, np.split(projected, ends), strict=True))


def _symmetric(half: list[tuple[float, float]], middle: list[tuple[float, float]], samples: int) -> np.ndarray:
  """A smooth line through `half` (from x < 0 inwards), `middle`, and the mirror image of `half`."""
  return curve(np.array([*half, *middle, *((-x, y) for x, y in half[::-1])], np.float32), samples)


def _brow_curves(f: Features, strokes: np.ndarray) -> dict:
  x, y, arch = f.eye_x, f.brow_y, f.brow_arch
  line = curve(np.array([
    (x - 0.27, y + 0.035 - f.brow_tilt), (x - 0.12, y - 0.25 * arch), (x + 0.08, y - arch),
    (x + 0.24, y - 0.8 * arch + 0.02), (x + 0.36, y + 0.055 + f.brow_tilt),
  ]), 6)  # fmt: skip
  half = f.brow_thick / 2 * np.interp(_ALONG_BROW, [0, 0.12, 0.5, 0.8, 1], [0.6, 0.95, 1.0, 0.66, 0.15])
  drop = np.stack([np.zeros_like(half), half], 1)
  at = strokes[:, 0] * (_BROW_SPINE - 1.001)
  i = at.astype(int)
  room = half[i]
  root = line[i] + (at - i)[:, None] * (line[i + 1] - line[i])
  root[:, 1] += room * (1.9 * strokes[:, 1] - 0.55)
  rise = np.interp(strokes[:, 0], [0, 0.25, 0.7, 1], [1.2, 0.65, 0.10, -0.40]) + 0.4 * (strokes[:, 2] - 0.5)
  tip = root + (0.075 * (1.1 - 0.4 * strokes[:, :1])) * np.stack([np.cos(rise), -np.sin(rise)], 1)
  return {
    ('brow', 1): np.concatenate([line - drop, (line + drop)[::-1]]),
    ('brow_hairs', 1): np.concatenate([root, tip]),
  }


def _ink_brow(ink: Ink, scale: float, scene: Scene, makeup: Makeup | None, traced: dict, side: int) -> None:
  strength = makeup.brow if makeup else 0.0
  hair = scene.hair.color if scene.hair.style != 'bald' else srgb(52, 38, 32)
  color = (np.minimum(0.6 * hair, 0.16) + 0.10 * scene.skin.color) * (1 - 0.5 * strength)
  outline, density = traced['brow', side], scene.features.brow_density
  ink.fill(outline, color, 0.42 * density + 0.2 * strength, _BROWS[side])
  hairs = traced['brow_hairs', side].reshape(2, -1, 2).transpose(1, 0, 2)
  ink.strokes(hairs, 0.016 * scale, 0.85 * color, min(0.45 + 0.4 * density + 0.2 * strength, 0.95))


def _eye_curves(f: Features) -> dict:
  x, w, opening, rise = f.eye_x, f.eye_width, f.eye_open, f.eye_tilt * f.eye_width
  low = 0.60 * opening
  inner, outer = (x - w, 0.35 * rise + 0.014), (x + w, -rise)
  upper = [
    inner,
    (x - 0.62 * w, -0.64 * opening),
    (x - 0.12 * w, -1.06 * opening),
    (x + 0.45 * w, -0.88 * opening - 0.3 * rise),
    outer,
  ]
  lower = [outer, (x + 0.55 * w, 0.74 * low - 0.5 * rise), (x, low), (x - 0.55 * w, 0.74 * low), inner]
  upper, lower = curve(np.array(upper), 7), curve(np.array(lower), 7)
  fold = upper + np.array([0, -0.03 - 0.04 * f.eye_fold], np.float32)
  bag = lower[4:-4] + np.array([0, 0.06], np.float32)
  gaze = np.array([[x + f.gaze[0], -0.18 * opening + f.gaze[1]]], np.float32)
  return {('eye', 1): np.concatenate([upper, lower[1:-1]]), ('fold', 1): fold, ('bag', 1): bag, ('gaze', 1): gaze}


def _ink_eye(
  ink: Ink, scale: float, plate: np.ndarray, scene: Scene, makeup: Makeup | None, traced: dict, side: int
) -> None:
  f, light, skin = scene.features, scene.light, scene.skin.color
  opening = traced['eye', side]
  upper, lower = opening[:29], np.concatenate([opening[28:], opening[:1]])
  ball = plate * scale
  # Gaze is the same way for both eyes, though the tracing mirrors it.
  center = traced['gaze', side][0] + np.array([(1 - side) * f.gaze[0] * scale, 0])

  def disc(radius: float, x: float = 0.0, y: float = 0.0) -> np.ndarray:
    return center + f.iris_radius * (radius * ball + np.array([x, y]) * scale)

  ink.fill(opening, _SCLERA, 1.0, _EYES[side])
  for end, reach in ((upper[0], 0.075), (upper[-1], 0.085)):
    ink.fill(end + _UNIT * (reach * scale), _SCLERA_EDGE)
  ink.fill(upper[0] + (0.02 * side * scale, 0) + _UNIT * (0.032 * scale), _CARUNCLE)
  toward = float(light.toward[0])
  ink.fill(disc(1.04), f.iris * 0.20)
  ink.fill(disc(0.88), f.iris * 0.62)
  ink.fill(disc(0.70, -0.12 * toward, 0.16), f.iris * 1.05)
  # The cornea gathers light on the side away from where it comes.
  ink.fill(disc(0.48, -0.25 * toward, 0.34), np.minimum(f.iris * 1.9 + 0.01, 1))
  ink.fill(disc(0.42), _PUPIL)
  # The ball below the upper lid lies in its shade.
  ink.strokes(upper[None], 0.055 * scale, 0.30 * (skin + f.iris) * np.array([0.5, 0.42, 0.42]), 0.72)
  glint = 0.40 if toward >= 0 else -0.40
  ink.fill(disc(0.22, glint, -0.36), np.ones(3))
  ink.fill(disc(0.11, -glint, 0.45), np.full(3, 0.75))
  ink.keep_inside(opening)

  lash = f.lash + (0.5 * makeup.lash if makeup else 0.0)
  liner = makeup.liner if makeup else 0.0
  dark = _INK * (1.0 if makeup else 1.6) + (0.0 if makeup else 0.06) * skin
  ink.strokes(lower[None], 0.015 * scale, skin * np.array([0.46, 0.27, 0.25]) * (1 - 0.5 * liner), 0.65 + 0.3 * liner)
  ink.fill(
    ribbon(moved(upper, 0, -0.004 * scale), (0.026 + 0.018 * lash + 0.03 * liner) * _LID_SWELL * scale),
    dark,
    min(0.78 + 0.2 * lash, 1.0),
  )
  base = upper[12:28:2]
  tips = base + (0.028 + 0.038 * lash) * scale * np.concatenate(
    [side * (0.15 + 0.9 * _LASH_FAN), -1.0 + 0.25 * _LASH_FAN], axis=1
  )
  bend = (base + tips) / 2 + 0.009 * scale * np.array([side, 0.7])
  ink.strokes(np.stack([base, bend, tips], axis=1), 0.009 * scale, dark, min(0.45 + 0.5 * lash, 1.0))

  ink.shade(ribbon(traced['fold', side], 0.034 * scale * _LID_TAPER), 0.35 + 0.5 * f.eye_fold)
  ink.shade_line(traced['bag', side], 0.020 * scale, 0.12 + 0.33 * scene.shape.age)
  ink.shade_line(upper[3:-3], 0.04 * scale, 0.30)


def _nose_curves(f: Features) -> dict:
  y, w = f.nose_y, f.nose_width
  half = [
    (-0.9 * w, y + 0.085),
    (-1.04 * w, y),
    (-0.80 * w, y - 0.11),
    (-0.12, y - 0.22),
    (-0.085, 0.15),
    (-0.075, -0.06),
  ]
  outline = curve(
    np.array([(0, y + 0.135), (-0.4 * w, y + 0.105), *half, *((-a, b) for a, b in half[::-1]), (0.4 * w, y + 0.105)]),
    3,
    True,
  )
  nostril = np.array(
    [
      (0.20 * w, y + 0.085),
      (0.36 * w, y + 0.045),
      (0.60 * w, y + 0.050),
      (0.66 * w, y + 0.078),
      (0.50 * w, y + 0.095),
      (0.32 * w, y + 0.100),
    ]
  )
  crease = np.array([(0.84 * w, y - 0.11), (1.04 * w, y - 0.04), (1.02 * w, y + 0.05), (0.80 * w, y + 0.10)])
  under = np.array([(-0.55 * w, y + 0.105), (0, y + 0.145), (0.55 * w, y + 0.105)])
  fold = np.array(
    [
      (1.12 * w, y - 0.02),
      (1.35 * w, y + 0.12),
      (f.mouth_width + 0.05, f.mouth_y - 0.16),
      (f.mouth_width + 0.07, f.mouth_y - 0.02),
    ]
  )
  return {
    'nose': outline,
    'under_nose': curve(under, 5),
    ('nostril', 1): curve(nostril, 4, True),
    ('wing', 1): curve(crease, 4),
    ('laugh', 1): curve(fold, 5),
  }


def _ink_nose(ink: Ink, scale: float, scene: Scene, traced: dict) -> None:
  # Clears what it hides of the far eye, and keeps the skin that is there.
  ink.fill(traced['nose'], np.zeros(3), 0.0, _NOSE)
  lines = 0.10 + 0.22 * max(scene.features.smile, 0) + 0.25 * scene.shape.age
  for side in (1, -1):
    ink.fill(traced['nostril', side], scene.skin.color * np.array([0.16, 0.075, 0.06]), 0.72)
    wing, laugh = traced['wing', side], traced['laugh', side]
    ink.shade_line(wing[1:-1], 0.038 * scale, 0.42)
    ink.shade_line(laugh[2:-2], 0.024 * scale, lines)
  ink.shade_line(traced['under_nose'], 0.04 * scale, 0.35)


def _mouth_curves(f: Features) -> dict:
  y, w, gape, smile = f.mouth_y, f.mouth_width, f.gape, f.smile
  corner = (-w, y + 0.35 * gape - 0.018 - 0.065 * smile)
  top, full = y - f.upper_lip, f.lower_lip
  low = y + gape
  upper = _symmetric(
    [corner, (-0.62 * w, y - 0.58 * f.upper_lip - 0.02 * smile), (-0.17 * w, top)],
    [(0, top + 0.25 * f.cupid * f.upper_lip)],
    6,
  )
  seam = _symmetric([corner, (-0.52 * w, y + 0.001 + 0.01 * smile)], [(0, y + 0.018)], 6)
  open_low = _symmetric([corner, (-0.58 * w, low - 0.26 * gape + 0.006)], [(0, low + 0.022)], 6)
  lower = _symmetric(
    [corner, (-0.60 * w, low + 0.58 * full - 0.16 * gape), (-0.22 * w, low + full)], [(0, low + 1.02 * full)], 6
  )
  below = _symmetric(
    [(-0.62 * w, low + 0.95 * full + 0.035), (-0.3 * w, low + full + 0.06)], [(0, low + full + 0.07)], 4
  )
  teeth = seam + (open_low - seam) * min(0.85, 0.11 / (gape + 0.02))
  roll = curve(
    np.array(
      [
        (-0.45 * w, low + 0.42 * full - 0.10 * gape),
        (0, low + 0.46 * full + 0.01),
        (0.45 * w, low + 0.42 * full - 0.10 * gape),
      ]
    ),
    8,
  )
  corners = np.array([corner, (-corner[0], corner[1])], np.float32)
  return {
    'upper': upper,
    'seam': seam,
    'open_low': open_low,
    'lower': lower,
    'below_lip': below,
    'teeth': teeth,
    'roll': roll,
    'corners': corners,
    'lips': np.concatenate([upper, lower[::-1]]),
  }


def _ink_mouth(ink: Ink, scale: float, scene: Scene, makeup: Makeup | None, traced: dict) -> None:
  f, lip = scene.features, scene.skin.lip
  if makeup:
    lip = lip + (makeup.lip - lip) * makeup.lip_opacity
  upper, seam, open_low, lower = (traced[name] for name in ('upper', 'seam', 'open_low', 'lower'))
  if f.gape:
    _ink_cavity(ink, scale, traced)
  ink.fill(np.concatenate([upper, seam[::-1]]), lip * 0.80, 0.93, _UPPER_LIP)
  ink.fill(np.concatenate([open_low, lower[::-1]]), lip, 0.93, _LOWER_LIP)
  # Light gathers where the lower lip rolls out.
  roll, span = traced['roll'], _ROLL_TAPER * scale
  ink.fill(ribbon(roll, 0.42 * f.lower_lip * span), lip * 1.16 + 0.006, 0.93)
  ink.fill(ribbon(roll, 0.16 * f.lower_lip * span), lip * 1.34 + 0.014, 0.93)
  ink.fill(
    ribbon(seam, (0.010 + (0.012 if f.gape else 0.020) * _SEAM_TAPER) * scale), lip * np.array([0.16, 0.08, 0.09]), 0.92
  )
  for x, y in traced['corners']:
    ink.shade(ellipse(x, y, 0.05 * scale, 0.04 * scale, count=12), 0.40)
  below = traced['below_lip']
  ink.shade_line(below[2:-2], 0.045 * scale, 0.38)


def _ink_cavity(ink: Ink, scale: float, traced: dict) -> None:
  """The open mouth: dark inside, tongue, upper teeth with their gaps."""
  seam, low, teeth = traced['seam'], traced['open_low'], traced['teeth']
  ink.fill(np.concatenate([seam, low[::-1]]), _CAVITY, 1.0, _MOUTH)
  tongue = 0.3 * seam[5:-5] + 0.7 * low[5:-5]
  ink.fill(np.concatenate([tongue, low[5:-5][::-1]]), _TONGUE)
  ink.fill(np.concatenate([seam[2:-2], teeth[2:-2][::-1]]), _TOOTH_EDGE)
  ink.fill(np.concatenate([seam[4:-4], teeth[4:-4][::-1]]), _TOOTH)
  middle = (len(seam) - 1) // 2
  at = middle + np.array([-7, -5, -4, -2, 0, 2, 4, 5, 7])
  ink.strokes(np.stack([seam[at], teeth[at]], axis=1), 0.007 * scale, _TOOTH_GAP)
  ink.strokes(seam[None], 0.034 * scale, _TOOTH_SHADE)
