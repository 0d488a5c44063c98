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
# What comes in pairs is the subject's left, which is on the picture's right, and then its mirror image.
_EYES = labels.index('l_eye'), labels.index('r_eye')
_BROWS = labels.index('l_brow'), labels.index('r_brow')
_MIRROR = np.array([-1, 1], np.float32)

_UNIT = ellipse(0, 0, 1, 1, count=24)
_CORNER = ellipse(0, 0, 0.05, 0.04, count=12)
_BROW_SPINE = 25
_BROW_TAPER = np.interp(np.linspace(0, 1, _BROW_SPINE), [0, 0.12, 0.5, 0.8, 1], [0.6, 0.95, 1.0, 0.66, 0.15])
_DOWN = np.array([0, 1], np.float32)
# Profiles of lines that swell and taper, over the points of the curve they are for.
_LID_SWELL = np.sin(np.linspace(0.35, 2.8, 29, dtype=np.float32)) * np.linspace(0.55, 1.15, 29, dtype=np.float32)
_LID_TAPER = np.sin(np.linspace(0.25, 2.9, 29, dtype=np.float32))
_ROLL_TAPER = np.sin(np.linspace(0.15, 2.99, 17, dtype=np.float32))
_SEAM_TAPER = np.sin(np.linspace(0.15, 2.99, 25, dtype=np.float32))
_BOTH = np.array([1, -1], np.float32)
_SPREAD = np.linspace(-0.1, 1.0, 8, dtype=np.float32)
# Directions of the lashes, [2, 8, 2], and which way they bend, [2, 1, 2].
_LASH_FAN = np.stack(np.broadcast_arrays(_BOTH[:, None] * (0.15 + 0.9 * _SPREAD), -1.0 + 0.25 * _SPREAD), axis=-1)
_LASH_BEND = np.array([[[1, 0.7]], [[-1, 0.7]]], np.float32)
_GAZE_BACK = np.array([[[0, 0]], [[2, 0]]], np.float32)
_CARUNCLE_IN = np.array([[[0.02, 0]], [[-0.02, 0]]], np.float32)
_SCLERA = srgb(214, 206, 202)
_SCLERA_EDGE = srgb(182, 160, 154)
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
_LID_SHADE = 0.30 * np.array([0.5, 0.42, 0.42], np.float32)
_LID_EDGE = np.array([0.46, 0.27, 0.25], np.float32)
_NOSTRIL = np.array([0.16, 0.075, 0.06], np.float32)
_LIP_SEAM = np.array([0.16, 0.08, 0.09], np.float32)
# What full shade leaves of red, green and blue light: creases of skin glow red.
_CREASE = np.array([0.42, 0.30, 0.28], np.float32)


def paint_features(canvas: Canvas, head: Head, scene: Scene, makeup: Makeup | None, strokes: np.ndarray) -> np.ndarray:
  """Inks the whole face -> outline of the lips (picture units). `strokes` uniform [N, 3] places the hairs of a brow."""
  features = scene.features
  sided = _brow_curves(features, strokes) | _eye_curves(features) | _nose_sides(features)
  middle = _nose_curves(features) | _mouth_curves(features)
  left = np.concatenate(list(sided.values()))
  projected = head.on_face(np.concatenate([left, left * _MIRROR, *middle.values()]))
  ink = Ink(canvas, np.stack([projected.min(0) - 0.02, projected.max(0) + 0.02]))
  points = ink.points(projected)
  traced, at = {}, 2 * len(left)
  for name, line in middle.items():
    traced[name] = points[None, at : at + len(line)]
    if name == 'lips':
      lips = projected[at : at + len(line)]
    at += len(line)
  # The subject's left, then its mirror image: [2, N, 2].
  pairs, at = points[: 2 * len(left)].reshape(2, -1, 2), 0
  for name, line in sided.items():
    traced[name] = pairs[:, at : at + len(line)]
    at += len(line)
  unit = ink.length(head.pose.scale)
  _ink_eyes(ink, unit, head.foreshortened(_UNIT), scene, makeup, traced)
  _ink_brows(ink, unit, scene, makeup, traced)
  _ink_nose(ink, unit, scene, traced)
  _ink_mouth(ink, unit, scene, makeup, traced)
  ink.apply(_CREASE, blur=0.06 * head.pose.scale)
  return lips


def _symmetric(half: list[tuple[float, float]], middle: list[tuple[float, float]], samples: int) -> np.ndarray:
  """A smooth line through `half` (from x < 0 inwards), `middle`, and the mirror image of `half`."""
  return curve(np.array([*half, *middle, *((-x, y) for x, y in half[::-1])], np.float32), samples)


def _brow_curves(f: Features, strokes: np.ndarray) -> dict:
  x, y, arch = f.eye_x, f.brow_y, f.brow_arch
  line = curve(np.array([
    (x - 0.27, y + 0.035 - f.brow_tilt), (x - 0.12, y - 0.25 * arch), (x + 0.08, y - arch),
    (x + 0.24, y - 0.8 * arch + 0.02), (x + 0.36, y + 0.055 + f.brow_tilt),
  ]), 6)  # fmt: skip
  half = f.brow_thick / 2 * _BROW_TAPER
  drop = half[:, None] * _DOWN
  at = strokes[:, 0] * (_BROW_SPINE - 1.001)
  i = at.astype(int)
  room = half[i]
  root = line[i] + (at - i)[:, None] * (line[i + 1] - line[i])
  root[:, 1] += room * (1.9 * strokes[:, 1] - 0.55)
  rise = np.interp(strokes[:, 0], [0, 0.25, 0.7, 1], [1.2, 0.65, 0.10, -0.40]) + 0.4 * (strokes[:, 2] - 0.5)
  tip = root + (0.075 * (1.1 - 0.4 * strokes[:, :1])) * np.stack([np.cos(rise), -np.sin(rise)], 1)
  return {
    'brow': np.concatenate([line - drop, (line + drop)[::-1]]),
    'brow_hairs': np.concatenate([root, tip]),
  }


def _ink_brows(ink: Ink, scale: float, scene: Scene, makeup: Makeup | None, traced: dict) -> None:
  strength = makeup.brow if makeup else 0.0
  hair = scene.hair.color if scene.hair.style != 'bald' else _BALD_BROW
  color = (np.minimum(0.6 * hair, 0.16) + 0.10 * scene.skin.color) * (1 - 0.5 * strength)
  density = scene.features.brow_density
  ink.fill(traced['brow'], color, 0.42 * density + 0.2 * strength, _BROWS)
  # Roots, then tips, of both sides -> one short line each.
  hairs = traced['brow_hairs'].reshape(2, 2, -1, 2).transpose(0, 2, 1, 3).reshape(-1, 2, 2)
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
  return {'eye': np.concatenate([upper, lower[1:-1]]), 'fold': fold, 'bag': bag, 'gaze': gaze}


def _ink_eyes(ink: Ink, scale: float, plate: np.ndarray, scene: Scene, makeup: Makeup | None, traced: dict) -> None:
  f, light, skin = scene.features, scene.light, scene.skin.color
  opening = traced['eye']
  upper, lower = opening[:, :29], np.concatenate([opening[:, 28:], opening[:, :1]], axis=1)
  # Gaze is the same way for both eyes, though the tracing mirrors it.
  center = traced['gaze'] + _GAZE_BACK * (f.gaze[0] * scale)
  toward = float(light.toward[0])
  glint = 0.40 if toward >= 0 else -0.40
  # Radius, x, y in iris radii. The cornea gathers light on the side away from where it comes.
  discs = np.array([
    (1.04, 0, 0), (0.88, 0, 0), (0.70, -0.12 * toward, 0.16), (0.48, -0.25 * toward, 0.34), (0.42, 0, 0),
    (0.22, glint, -0.36), (0.11, -glint, 0.45),
  ], np.float32)[:, None] * (f.iris_radius * scale)  # fmt: skip
  discs = (discs[..., :1] * plate + discs[..., 1:])[:, None] + center

  ink.fill(opening, _SCLERA, 1.0, _EYES)
  ends = upper[:, ::28].reshape(4, 1, 2)
  ink.fill(ends + _UNIT * (0.08 * scale), _SCLERA_EDGE)
  ink.fill(upper[:, :1] + _CARUNCLE_IN * scale + _UNIT * (0.032 * scale), _CARUNCLE)
  for disc, color in zip(
    discs, (f.iris * 0.20, f.iris * 0.62, f.iris * 1.05, np.minimum(f.iris * 1.9 + 0.01, 1), _PUPIL), strict=False
  ):
    ink.fill(disc, color)
  # The ball below the upper lid lies in its shade.
  ink.strokes(upper, 0.055 * scale, _LID_SHADE * (skin + f.iris), 0.72)
  ink.fill(discs[5], _WHITE)
  ink.fill(discs[6], 0.75 * _WHITE)
  ink.keep_inside(opening)

  lash = f.lash + (0.5 * makeup.lash if makeup else 0.0)
  liner = makeup.liner if makeup else 0.0
  dark = _INK * (1.0 if makeup else 1.6) + (0.0 if makeup else 0.06) * skin
  ink.strokes(lower, 0.015 * scale, skin * _LID_EDGE * (1 - 0.5 * liner), 0.65 + 0.3 * liner)
  ink.fill(
    ribbon(moved(upper, 0, -0.004 * scale), (0.026 + 0.018 * lash + 0.03 * liner) * scale * _LID_SWELL),
    dark,
    min(0.78 + 0.2 * lash, 1.0),
  )
  base = upper[:, 12:28:2]
  tips = base + (0.028 + 0.038 * lash) * scale * _LASH_FAN
  bend = (base + tips) / 2 + 0.009 * scale * _LASH_BEND
  ink.strokes(np.stack([base, bend, tips], axis=2).reshape(-1, 3, 2), 0.009 * scale, dark, min(0.45 + 0.5 * lash, 1.0))

  ink.shade(ribbon(traced['fold'], 0.034 * scale * _LID_TAPER), 0.35 + 0.5 * f.eye_fold)
  ink.shade_lines(traced['bag'], 0.020 * scale, 0.12 + 0.33 * scene.shape.age)
  ink.shade_lines(upper[:, 3:-3], 0.04 * scale, 0.30)


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
  under = np.array([(-0.55 * w, y + 0.105), (0, y + 0.145), (0.55 * w, y + 0.105)])
  return {'nose': outline, 'under_nose': curve(under, 5)}


def _nose_sides(f: Features) -> dict:
  y, w = f.nose_y, f.nose_width
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
  fold = np.array(
    [
      (1.12 * w, y - 0.02),
      (1.35 * w, y + 0.12),
      (f.mouth_width + 0.05, f.mouth_y - 0.16),
      (f.mouth_width + 0.07, f.mouth_y - 0.02),
    ]
  )
  return {'nostril': curve(nostril, 4, True), 'wing': curve(crease, 4), 'laugh': curve(fold, 5)}


def _ink_nose(ink: Ink, scale: float, scene: Scene, traced: dict) -> None:
  # Clears what it hides of the far eye, and keeps the skin that is there.
  ink.fill(traced['nose'], _WHITE, 0.0, (_NOSE,))
  lines = 0.10 + 0.22 * max(scene.features.smile, 0) + 0.25 * scene.shape.age
  ink.fill(traced['nostril'], scene.skin.color * _NOSTRIL, 0.72)
  ink.shade_lines(traced['wing'][:, 1:-1], 0.038 * scale, 0.42)
  ink.shade_lines(traced['laugh'][:, 2:-2], 0.024 * scale, lines)
  ink.shade_lines(traced['under_nose'], 0.04 * scale, 0.35)


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
  ink.fill(_between(upper, seam), lip * 0.80, 0.93, (_UPPER_LIP,))
  ink.fill(_between(open_low, lower), lip, 0.93, (_LOWER_LIP,))
  # Light gathers where the lower lip rolls out.
  roll, span = traced['roll'], _ROLL_TAPER * scale
  ink.fill(ribbon(roll, 0.42 * f.lower_lip * span), lip * 1.16 + 0.006, 0.93)
  ink.fill(ribbon(roll, 0.16 * f.lower_lip * span), lip * 1.34 + 0.014, 0.93)
  ink.fill(ribbon(seam, (0.010 + (0.012 if f.gape else 0.020) * _SEAM_TAPER) * scale), lip * _LIP_SEAM, 0.92)
  ink.shade(traced['corners'].transpose(1, 0, 2) + _CORNER * scale, 0.40)
  ink.shade_lines(traced['below_lip'][:, 2:-2], 0.045 * scale, 0.38)


def _between(one: np.ndarray, other: np.ndarray) -> np.ndarray:
  """Outlines of what lies between lines [..., N, 2] that run the same way."""
  return np.concatenate([one, other[..., ::-1, :]], axis=-2)


def _ink_cavity(ink: Ink, scale: float, traced: dict) -> None:
  """The open mouth: dark inside, tongue, upper teeth with their gaps."""
  seam, low, teeth = traced['seam'], traced['open_low'], traced['teeth']
  ink.fill(_between(seam, low), _CAVITY, 1.0, (_MOUTH,))
  tongue = 0.3 * seam[:, 5:-5] + 0.7 * low[:, 5:-5]
  ink.fill(_between(tongue, low[:, 5:-5]), _TONGUE)
  ink.fill(_between(seam[:, 2:-2], teeth[:, 2:-2]), _TOOTH_EDGE)
  ink.fill(_between(seam[:, 4:-4], teeth[:, 4:-4]), _TOOTH)
  middle = (seam.shape[1] - 1) // 2
  at = middle + np.array([-7, -5, -4, -2, 0, 2, 4, 5, 7])
  ink.strokes(np.stack([seam[0, at], teeth[0, at]], axis=1), 0.007 * scale, _TOOTH_GAP)
  ink.strokes(seam, 0.034 * scale, _TOOTH_SHADE)
