"""Mask and label-map agreement on cases counted by hand, and against a count in NumPy."""

import jax
import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.metrics.segmentation import confusion_matrix, iou_from_confusion, mask_dice, mask_iou, mean_iou


def test_masks_counted_by_hand():
  target = np.zeros((4, 4, 4, 1), np.float32)
  prediction = target.copy()
  target[0, :2], prediction[0, 1:] = 1, 0.6  # 8 and 12 pixels, 4 in common
  target[1, :2] = 1  # nothing found
  target[2, :2], prediction[2, :2], prediction[2, 2:] = 0.51, 1, 0.5  # exactly half is out
  np.testing.assert_allclose(jax.jit(mask_iou)(prediction, target), [4 / 16, 0, 1, 1])
  np.testing.assert_allclose(jax.jit(mask_dice)(prediction, target), [8 / 20, 0, 1, 1])
  np.testing.assert_allclose(mask_iou(prediction, target, threshold=0.7), [0, 0, 0, 1])


def test_confusion_counts_pixels_of_each_picture():
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 4, (3, 7, 9)).astype(np.uint8)
  predictions = rng.integers(0, 4, (3, 7, 9)).astype(np.uint8)
  labels[0, 0, 0] = 255  # ignored
  predictions[1, 0, 0] = 4  # outside, ignored
  actual = jax.jit(confusion_matrix, static_argnums=2)(labels, predictions, 4)
  expected = np.zeros((3, 4, 4), int)
  for b, y, x in np.ndindex(labels.shape):
    if labels[b, y, x] < 4 and predictions[b, y, x] < 4:
      expected[b, labels[b, y, x], predictions[b, y, x]] += 1
  np.testing.assert_array_equal(actual, expected)
  assert actual.sum() == labels.size - 2
  negative = confusion_matrix(np.full((1, 2, 2), -1), np.full((1, 2, 2), 3), 4)
  assert not negative.any()


def test_iou_counted_by_hand():
  labels = np.array([[[0, 0, 1, 1]], [[2, 2, 2, 2]]])
  predictions = np.array([[[0, 1, 1, 1]], [[2, 2, 2, 2]]])
  confusion = confusion_matrix(labels, predictions, 3)
  np.testing.assert_allclose(iou_from_confusion(confusion), [[1 / 2, 2 / 3, np.nan], [np.nan, np.nan, 1]], rtol=1e-6)
  np.testing.assert_allclose(mean_iou(labels, predictions, 3), [7 / 12, 1], rtol=1e-6)
  np.testing.assert_allclose(iou_from_confusion(confusion.sum(0)), [1 / 2, 2 / 3, 1], rtol=1e-6)


def test_shapes_that_differ_are_refused():
  with pytest.raises(UserError, match='alike'):
    confusion_matrix(np.zeros((1, 2, 2), int), np.zeros((1, 2, 3), int), 2)
  with pytest.raises(UserError, match='alike'):
    mask_iou(np.zeros((1, 2, 2, 1)), np.zeros((1, 2, 2)))
