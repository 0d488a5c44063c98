"""Mask and label-map agreement on cases counted by hand, and against a count in NumPy."""

import jax
import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.metrics.segmentation import count_pairs, mask_dice, mask_iou, overlap, scores, scores_of


def test_masks_counted_by_hand():
  target = np.zeros((4, 4, 4, 1), np.float32)
  prediction = target.copy()
  target[0, :2], prediction[0, 1:] = 1, 0.6  # 8 and 12 pixels, 4 in common
  target[1, :2] = 1  # nothing found
  target[2, :2], prediction[2, :2], prediction[2, 2:] = 0.51, 1, 0.5  # exactly half is out
  np.testing.assert_allclose(jax.jit(mask_iou)(prediction, target), [4 / 16, 0, 1, 1])
  np.testing.assert_allclose(jax.jit(mask_dice)(prediction, target), [8 / 20, 0, 1, 1])
  np.testing.assert_allclose(mask_iou(prediction, target, threshold=0.7), [0, 0, 0, 1])


def test_label_maps_agree_as_much_counted_on_the_host_as_on_devices():
  label, found = np.random.default_rng(0).integers(0, 4, (2, 3, 7, 9))
  pairs = count_pairs(label, found, 5)
  expected = np.zeros((5, 5), int)
  for at in np.ndindex(label.shape):
    expected[label[at], found[at]] += 1
  np.testing.assert_array_equal(pairs, expected)
  of_set = scores(*(np.asarray(share).mean(0) for share in overlap(label, found, 5)))
  for name, value in scores_of(pairs).items():
    np.testing.assert_allclose(value, of_set[name], rtol=1e-6)


def test_shapes_that_differ_are_refused():
  with pytest.raises(UserError, match='alike'):
    overlap(np.zeros((1, 2, 2), int), np.zeros((1, 2, 3), int), 2)
  with pytest.raises(UserError, match='alike'):
    mask_iou(np.zeros((1, 2, 2, 1)), np.zeros((1, 2, 2)))
