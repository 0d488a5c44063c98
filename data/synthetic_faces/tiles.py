"""Texture tiles shared by all faces: made once from a fixed seed, periodic, float32 [128, 128], mean 0, deviation 1.

They are small so that they stay in a processor's cache; most are made at twice the size.
"""

import functools
from collections.abc import Callable

import cv2
import numpy as np

SIDE = 128
_MADE = 2 * SIDE
_PERIOD = np.float32(SIDE)


def _normalised(tile: np.ndarray) -> np.ndarray:
  tile = np.clip((tile - tile.mean()) / tile.std(), -3, 3)
  return tile.astype(np.float32)


def _kept(tile: np.ndarray) -> np.ndarray:
  return _normalised(cv2.resize(tile, (SIDE, SIDE), interpolation=cv2.INTER_AREA))


def _periodic_blur(noise: np.ndarray, sigma_x: float, sigma_y: float) -> np.ndarray:
  frequency = np.fft.fftfreq(_MADE)
  rows, columns = (np.exp(-2 * (np.pi * frequency * sigma) ** 2) for sigma in (sigma_y, sigma_x))
  return np.fft.ifft2(np.fft.fft2(noise) * rows[:, None] * columns).real


@functools.cache
def strands() -> np.ndarray:
  """Hair that runs down the tile: fine across, slow along."""
  rng = np.random.default_rng(1)
  octaves = [(0.8, 30, 0.8), (2.2, 45, 1.0), (6, 60, 0.9)]
  tile = sum(w * _normalised(_periodic_blur(rng.standard_normal((_MADE, _MADE)), sx, sy)) for sx, sy, w in octaves)
  return _kept(tile)


@functools.cache
def curls() -> np.ndarray:
  """Tight curls: many small bright arcs over dark gaps. Two periods long: curls have sharper edges than the rest."""
  rng = np.random.default_rng(2)
  tile = np.zeros((2 * _MADE, 2 * _MADE), np.float32)
  for _ in range(2600):
    x, y, radius = *rng.uniform(0, 2 * _MADE, 2), rng.uniform(7, 17)
    start, sweep = rng.uniform(0, 360), rng.uniform(120, 260)
    shade = float(rng.uniform(0.1, 1.0))
    for dx in (-2 * _MADE, 0, 2 * _MADE):
      for dy in (-2 * _MADE, 0, 2 * _MADE):
        center = (int(x + dx), int(y + dy))
        if -40 < center[0] < 2 * _MADE + 40 and -40 < center[1] < 2 * _MADE + 40:
          cv2.ellipse(tile, center, (int(radius), int(radius * 0.8)), start, 0, sweep, 0.4 * shade, 6)
          cv2.ellipse(tile, center, (int(radius), int(radius * 0.8)), start, 0, sweep, shade, 3)
  return _normalised(cv2.resize(tile, (_MADE, _MADE), interpolation=cv2.INTER_AREA))


@functools.cache
def grain() -> np.ndarray:
  """White noise, for stubble and the grain of cloth."""
  return _normalised(np.random.default_rng(3).standard_normal((SIDE, SIDE)))


@functools.cache
def clouds() -> np.ndarray:
  """Soft noise over several octaves, for folds of cloth and blotches of skin."""
  rng = np.random.default_rng(4)
  octaves = [(3, 0.35), (8, 0.6), (20, 1.0)]
  tile = sum(w * _normalised(_periodic_blur(rng.standard_normal((_MADE, _MADE)), s, s)) for s, w in octaves)
  return _kept(tile)


@functools.cache
def _doubled(make) -> np.ndarray:
  return np.tile(make(), (2, 2))


def places(along: np.ndarray) -> np.ndarray:
  """Coordinates x or y (in tiles, so 1 is one period; float32 [h, w]) as `at` takes them."""
  return along * _PERIOD + _PERIOD


def at(make: Callable[[], np.ndarray], x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """The tile that `make` makes at `places`, float32 [h, w]. Tiles are finer than pictures: the nearest texel will do.

  Fast where coordinates are in [-1, 1); right everywhere.
  """
  return cv2.remap(_doubled(make), x, y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_WRAP)


def sample(make: Callable[[], np.ndarray], x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """The tile that `make` makes at coordinates x, y, in tiles, float32 [h, w] -> float32 [h, w]."""
  return at(make, places(x), places(y))
