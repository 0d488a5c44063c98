"""Pictures on the host resized without aliasing."""

import cv2
import numpy as np
from PIL import Image


def to_square(picture: np.ndarray, side: int) -> np.ndarray:
  """uint8 or float32 [H, W] or [H, W, C] -> [side, side] or [side, side, C].

  Averaged along an axis that shrinks, bilinear along one that grows.
  """
  height, width = min(picture.shape[0], side), min(picture.shape[1], side)
  # OpenCV averages only where no axis grows.
  for size, interpolation in (((width, height), cv2.INTER_AREA), ((side, side), cv2.INTER_LINEAR)):
    if picture.shape[1::-1] != size:
      picture = cv2.resize(picture, size, interpolation=interpolation)
  return picture


def by_pillow(picture: np.ndarray, size: tuple[int, int], method: Image.Resampling) -> np.ndarray:
  """uint8 [H, W] or [H, W, 3], or float32 [H, W] -> (width, height) `size`, as Pillow and torchvision resize."""
  return picture if picture.shape[1::-1] == size else np.asarray(Image.fromarray(picture).resize(size, method))
