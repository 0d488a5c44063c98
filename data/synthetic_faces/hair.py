"""Hair: its outline, the strands that follow it, and the shapes it adds to the light."""

import functools
import math
from typing import NamedTuple

import cv2
import numpy as np

from jaxface import labels

from . import tiles
from .canvas import Canvas, Patch, clip, curve, share, smoothstep, tinted
from .head import Head, half_grid
from .lighting import Relief
from .scene import LONG_STYLES, Scene

_HAIR = labels.index('hair')
# Across the hairline from temple to temple: the angles of its points, and how a parting tilts it.
_HAIRLINE_ANGLES = np.array(
  [-1.40, -1.36, -1.22, -1.02, -0.72, -0.38, 0.0, 0.38, 0.72, 1.02, 1.22, 1.36, 1.40], np.float32
)
_HAIRLINE_LEAN = np.array([0, 0, 0.6, 1, 1.6, 1.0, 0, -1.0, -1.6, -1, -0.6, 0, 0], np.float32)
# Heights at which a silhouette is drawn: from the crown to the widest place, and from there to the end.
_FROM_CROWN = np.cos(np.linspace(0, np.pi / 2, 12, dtype=np.float32))
_TO_END = np.sin(np.linspace(0, np.pi / 2, 14, dtype=np.float32)[1:])
_TABLE_Y = np.linspace(-3.0, 4.0, 128, dtype=np.float32)
_PER_TABLE_STEP = 1 / (_TABLE_Y[1] - _TABLE_Y[0])
_LEFT_RIGHT = np.array([[-1], [1]], np.float32)
_QUARTER_TURN = np.array([1, -1], np.float32)
_COVERS_EARS = (*LONG_STYLES, 'afro')


def covers_ears(scene: Scene) -> bool:
  """Whether the hair lies over the ears."""
  return scene.hair.style in _COVERS_EARS and not (scene.hair.style in ('long', 'wavy') and scene.hair.frame < 0.25)


class _Flow(NamedTuple):
  """What is smooth in hair, on the half grid: its dome and the waves on it, where its strands lie on their tile (x and
  y), and the ring of light on them."""

  dome: np.ndarray
  bump: np.ndarray
  places: tuple[np.ndarray, np.ndarray]
  gleam: np.ndarray


class Hair:
  """One head's hair. `outline` and `opening`, the gap for the face, in picture units.

  `jitter` uniform [90, 4] makes the edges uneven.
  """

  def __init__(self, head: Head, scene: Scene, jitter: np.ndarray):
    self._head, self._scene, self._jitter, self._stray_jitter = head, scene, jitter[:64, 0], jitter[64:]
    hair, yaw = scene.hair, scene.pose.yaw
    style = hair.style
    volume = {'buzz': 0.02, 'short': 0.09, 'receding': 0.06, 'afro': 0.42, 'curly': 0.26, 'updo': 0.10}.get(
      style, 0.12
    ) + 0.6 * (hair.volume - 0.1) * (style not in ('buzz',))
    self.volume = volume
    # The skull lies behind the face, so it moves less when the head turns.
    self.x = -0.08 * math.sin(yaw)
    self.y = -0.36 + 0.25 * math.sin(scene.pose.pitch)
    self.half_width = 1.02 * math.sqrt(1 + 0.5 * math.sin(yaw) ** 2) * scene.shape.cranium + 0.75 * volume
    self.height = 1.29 + volume
    self.opening = self._opening()
    end = hair.length if style in LONG_STYLES else {'afro': 0.7}.get(style, 0.22)
    # None for a bald head.
    self.outline = None if style == 'bald' else self._silhouette(end)
    # Whether there is hair to be seen behind the neck.
    self.hangs = style in (*LONG_STYLES, 'afro')
    self._woven = None

  def _screen(self, points: np.ndarray) -> np.ndarray:
    """Head units on the screen plane -> picture units."""
    pose = self._scene.pose
    cos, sin = math.cos(pose.roll) * pose.scale, math.sin(pose.roll) * pose.scale
    return points @ np.array([[cos, sin], [-sin, cos]], np.float32) + (np.float32(pose.x), np.float32(pose.y))

  def profile(self, y: np.ndarray) -> np.ndarray:
    """Half-width of the hair at screen height y, head units; the strands follow its shape."""
    hair = self._scene.hair
    over = clip((self.y - y) * (1 / self.height), 0, 1)
    top = np.sqrt(np.maximum(1 - over * over * np.sqrt(over), 1e-4))
    below = np.maximum(y - self.y, 0)
    flare = {'bob': 0.10, 'long': 0.10, 'wavy': 0.20, 'curly': 0.34, 'afro': -0.05}.get(hair.style, 0.0)
    if hair.style not in _COVERS_EARS:
      # Cut short, hair lies close to the sides of the head.
      tuck = (0.02 - 0.75 * self.volume) * smoothstep(-0.5, 0.5, below)
    elif hair.style == 'bob':
      tuck = -0.16 * smoothstep(0.5 * hair.length, hair.length, y)
    else:
      tuck = 0.0
    return np.maximum(self.half_width * top + flare * smoothstep(0.0, 1.6, below) + tuck, 0.01)

  def _opening(self) -> np.ndarray:
    """The gap the face looks through: hairline, temples, and down past the chin."""
    hair, head = self._scene.hair, self._head
    style, line = hair.style, hair.line
    long = style in _COVERS_EARS
    burn = 0.30 if not long else 0.1
    temple = -0.50 - hair.temple
    jag = self._jitter[:11] - 0.5
    if style == 'fringe':
      low = -0.42 - 0.25 * hair.frame
      angle = np.linspace(-1.05, 1.05, 23)
      height = low + 0.10 * (self._jitter[:23] - 0.5) + 0.16 * hair.parting * angle
      heights = np.concatenate([[burn, -0.15, -0.35], height, [-0.35, -0.15, burn]])
      angles = np.concatenate([[-1.38, -1.32, -1.22], angle, [1.22, 1.32, 1.38]])
      smooth = False
    else:
      recede = 0.24 if style == 'receding' else 0.0
      angles = _HAIRLINE_ANGLES
      sweep = 0.10 if style in ('side_part', 'wavy', 'long', 'bob', 'short') else 0.0
      lean = sweep * math.copysign(1, hair.parting) * _HAIRLINE_LEAN
      middle, edge = line - 0.3 * recede, line + 0.12 - recede
      drop = np.array(
        [burn, -0.15, temple, -0.60, edge, middle, line, middle, edge, -0.60, temple, -0.15, burn], np.float32
      )
      heights = drop + lean
      heights[1:-1] += 0.05 * jag
      if long and hair.frame > 0.4:
        angles = angles * (1 - 0.22 * (hair.frame - 0.4) * smoothstep(-0.7, 0.2, heights))
      smooth = True
    hairline = head.around(angles, heights, 1.01)
    if smooth:
      hairline = curve(hairline, 5)
    if long and style != 'afro':
      inner = 0.80 + 0.22 * (1 - hair.frame)
      side = np.array(
        [
          (0.98 - 0.10 * hair.frame, 0.55),
          (0.90 - 0.12 * hair.frame, 1.1),
          (inner, 1.7),
          (inner + 0.10, 2.3),
          (inner + 0.15, 3.6),
        ]
      )
    else:
      side = np.array([(1.9, 0.34), (3.0, 3.6)])
    shift = np.zeros_like(side)
    shift[:, 0] = 0.7 * math.sin(self._scene.pose.yaw) * np.exp(-np.maximum(side[:, 1] - 0.5, 0))
    sides = self._screen(np.concatenate([side + shift, (side * (-1, 1) + shift)[::-1]]))
    return np.concatenate([hairline, sides])

  def _silhouette(self, end: float) -> np.ndarray:
    """Outer edge from the lower left over the crown to the lower right, uneven, closed along the bottom."""
    hair = self._scene.hair
    ys = np.concatenate([self.y - self.height * _FROM_CROWN, self.y + (end - self.y) * _TO_END])
    widths = self.profile(ys)
    widths[0] = 0
    rough = {'curly': 0.075, 'afro': 0.07, 'wavy': 0.03, 'short': 0.035, 'fringe': 0.025}.get(hair.style, 0.012)
    noise = rough * (self._jitter[: 2 * len(ys)].reshape(2, -1) - 0.5) * min(2.0, 1.2 * (end - self.y))
    # Hair that ends within the picture ends round.
    turn = min({'afro': 0.55, 'curly': 0.45, 'wavy': 0.3}.get(hair.style, 0.16), 0.6 * (end - self.y))
    widths -= 0.7 * turn * (1 - np.sqrt((1 - np.square((ys - end + turn).clip(0) / turn)).clip(0)))
    # The left side and the right one, from the crown down.
    sides = np.empty((2, len(ys), 2), np.float32)
    sides[..., 0] = (widths + noise * (widths > 0.3)) * _LEFT_RIGHT
    sides[..., 0] += self.x
    if hair.wave > 0.02:
      sides[..., 0] += 1.2 * hair.wave * np.sin(5.2 * ys + 6 * hair.offset) * (ys > 0)
    sides[..., 1] = ys - noise * (widths <= 0.8)
    sides[0, -1, 1] += 0.1 * (self._jitter[60] - 0.5)
    return self._screen(curve(np.concatenate([sides[0, ::-1], sides[1, 1:]]), 3))

  def bun(self) -> np.ndarray | None:
    """Outline of an updo's knot."""
    if self._scene.hair.style != 'updo':
      return None
    angle = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    radius = 0.40 + 0.10 * self._scene.hair.frame + 0.05 * (self._jitter[:20] - 0.5)
    center = (self.x + 0.3 * self._scene.hair.parting, self.y - self.height - 0.12)
    return self._screen(
      curve(np.stack([center[0] + radius * np.cos(angle), center[1] + 0.8 * radius * np.sin(angle)], 1), 3, True)
    )

  def raise_relief(self, relief: Relief, outline: np.ndarray, behind: bool) -> None:
    """Adds the hair inside `outline`, with the opening for the face or `behind` it, to the shapes that are lit."""
    mask = relief.mask(outline)
    if not behind:
      mask &= 1 - relief.mask(self.opening)
    dome, bump = self._flow.dome, self._flow.bump
    relief.add(mask, 0.9 * dome - 1.1 if behind else 1.25 * dome - 0.05, bump, flatten=0.85)

  @functools.cached_property
  def _flow(self) -> '_Flow':
    hair = self._scene.hair
    u, v = self._head.head_units(*half_grid())
    at = (v - _TABLE_Y[0]) * _PER_TABLE_STEP
    profile = self.profile(_TABLE_Y)[None].astype(np.float32)
    width = cv2.remap(profile, at, np.zeros_like(at), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    # Beyond the outline the run of the strands has no meaning, and above the crown no bound.
    across = clip((u - self.x) / width, -1.5, 1.5)
    square = across * across
    up = (self.y - v) * (1 / self.height)
    over = clip(up, 0, 1)
    dome = np.sqrt(clip(1 - square - over * over, 0.015, 1))
    ring = (0.42 - up + 0.25 * square) * 4.5
    gleam = cv2.exp(-ring * ring)
    if hair.style in ('afro', 'curly'):
      scale = 0.84 if hair.style == 'afro' else 0.60
      x, y = u * scale + hair.offset, v * scale
    else:
      run = across
      if hair.wave > 0.02:
        run = run + hair.wave * np.sin(5.2 * v + 2.0 * u + 6 * hair.offset) * smoothstep(-0.3, 0.8, v) / width
      # Strands start from the parting and spread out to the sides.
      if hair.style not in ('buzz', 'updo'):
        run = run - hair.parting * clip(up + 0.2 / self.height, 0, 1) * (1 - square)
      coarse = {'short': 0.55, 'fringe': 0.6}.get(hair.style, 0.75)
      x, y = run * coarse + hair.offset, v * 0.16 + hair.offset
    bump = 0.02 * tiles.sample(tiles.clouds, u * 0.35 + hair.offset, v * 0.12)
    return _Flow(dome, bump, (tiles.places(x), tiles.places(y)), gleam)

  def paint_behind(self, canvas: Canvas, outline: np.ndarray) -> None:
    """Hair inside `outline` that lies behind neck or head, in their shade."""
    patch, picture, _ = self._strands(canvas, outline)
    canvas.paint(patch, cv2.convertScaleAbs(picture, alpha=0.775), _HAIR)

  def paint_front(self, canvas: Canvas) -> None:
    """Hair over head and face, with the opening for the face."""
    patch, picture, texture = self._strands(canvas, self.outline)
    canvas.paint(self._parted(canvas, patch, texture), picture, _HAIR)

  def _strands(self, canvas: Canvas, outline: np.ndarray) -> tuple[Patch, np.ndarray, np.ndarray]:
    """The outline's patch, a picture [h, w, 3] of the strands in it, and their texture [h, w] of deviation 1."""
    if outline is self.outline and self._woven is not None:
      return self._woven
    hair, flow, size = self._scene.hair, self._flow, (canvas.size, canvas.size)
    patch = canvas.cover(outline, self._strays() if outline is self.outline else None)
    box = patch.rows, patch.columns
    places = [cv2.resize(along, size)[box] for along in flow.places]
    curly = hair.style in ('afro', 'curly')
    texture = tiles.at(tiles.curls if curly else tiles.strands, *places)
    if hair.style == 'buzz':
      stubble = clip(0.36 - 0.10 * texture, 0, 1)
      picture = tinted(1 + 0.07 * texture, stubble, hair.color, self._scene.skin.color)
    else:
      tone = 1 + (0.21 if curly else 0.15) * texture
      # The ring of light that strands, being cylinders, show across their run.
      gleam = cv2.resize(flow.gleam, size)[box] * tone
      gleam *= tone
      shine = 255 * (0.12 if curly else hair.shine)
      picture = cv2.merge([
        cv2.addWeighted(tone, 255 * root, gleam, shine * (0.15 * root + 0.0175 / (root + 0.1)), 0, dtype=cv2.CV_8U)
        for root in np.sqrt(hair.color).tolist()
      ])  # fmt: skip
    woven = patch, picture, texture
    if outline is self.outline:
      self._woven = woven
    return woven

  def _parted(self, canvas: Canvas, patch: Patch, texture: np.ndarray) -> Patch:
    """The patch without the opening; along its edge some strands reach further than others."""
    whole = canvas.cover(self.opening)
    gap = np.zeros((canvas.size, canvas.size), np.uint8)
    gap[whole.rows, whole.columns] = whole.cover
    reach = 2 * int(0.014 * canvas.size + 0.5) + 1
    soft = share(cv2.blur(gap, (reach, reach), borderType=cv2.BORDER_REPLICATE)[patch.rows, patch.columns])
    strength = 0.25 if self._scene.hair.style in ('buzz', 'afro', 'curly') else 0.5
    edge = strength * texture * soft
    edge *= 1 - soft
    edge -= soft
    # Steeper than the blur, but never sharper than a pixel.
    steep = 255 * max(0.55 * reach, 1.1)
    kept = cv2.addWeighted(edge, steep, edge, 0, 127.5 + 0.5 * steep, dtype=cv2.CV_8U)
    return Patch(patch.rows, patch.columns, cv2.min(patch.cover, kept))

  def _strays(self) -> np.ndarray | None:
    """Single hairs off the silhouette, so that it is not cut with scissors: [N, 3, 2], picture units."""
    if self._scene.hair.style == 'buzz' or self._scene.wear.hat:
      return None
    outline, jitter = self.outline, self._stray_jitter
    at = 6 + (jitter[:, 0] * (len(outline) - 14)).astype(int)
    start, run = outline[at], outline[at + 4] - outline[at - 4]
    side = run[:, ::-1] * _QUARTER_TURN
    bend = start + 0.5 * run * jitter[:, 1:2] + 0.18 * side * (jitter[:, 2:3] - 0.1)
    tip = start + 1.1 * run * jitter[:, 1:2] + 0.30 * side * (jitter[:, 3:4] - 0.25)
    return np.concatenate([start, bend, tip], 1).reshape(-1, 3, 2)
