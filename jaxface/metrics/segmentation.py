"""Agreement of masks and of label maps; higher is better throughout, 1 is perfect."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxface.errors import UserError


def mask_iou(prediction: jax.Array, target: jax.Array, *, threshold: float = 0.5) -> jax.Array:
  """Intersection over union (Jaccard index) of masks [B, H, W, 1] -> float32 [B] in [0, 1].

  Soft masks are made hard first: a pixel is in where its value exceeds `threshold`. Two empty masks agree: 1.
  """
  overlap_B, prediction_B, target_B = _counts(prediction, target, threshold)
  return _ratio(overlap_B, prediction_B + target_B - overlap_B)


def mask_dice(prediction: jax.Array, target: jax.Array, *, threshold: float = 0.5) -> jax.Array:
  """Dice coefficient (F1) 2 |p and t| / (|p| + |t|) of masks [B, H, W, 1] -> float32 [B] in [0, 1].

  Masks are hardened and empty ones treated as in `mask_iou`; dice = 2 iou / (1 + iou).
  """
  overlap_B, prediction_B, target_B = _counts(prediction, target, threshold)
  return _ratio(2 * overlap_B, prediction_B + target_B)


class Overlap(NamedTuple):
  """How labels and predictions of each picture overlap, as shares of its pixels; float32.

  Averaged over pictures of one size they are those of the whole set, from which `scores` reads a benchmark's figures.

  Attributes:
    intersection: [B, C], pixels that are of the class in both.
    union: [B, C], pixels that are of the class in either.
    counted: [B], pixels whose label and prediction are both classes.
  """

  intersection: jax.Array
  union: jax.Array
  counted: jax.Array


def overlap(labels: jax.Array, predictions: jax.Array, num_classes: int) -> Overlap:
  """Overlap of label maps, integers [B, H, W].

  Pixels where label or prediction lies outside 0..num_classes - 1 (255, "ignore", say) are not counted.
  """
  if labels.shape != predictions.shape or labels.ndim != 3:
    raise UserError(f'label maps of shapes {labels.shape} and {predictions.shape}; both must be [B, H, W] and alike')
  labels, predictions = labels.astype(jnp.int32), predictions.astype(jnp.int32)
  counted = (labels >= 0) & (labels < num_classes) & (predictions >= 0) & (predictions < num_classes)
  # Compared with every class and summed in one pass: scattering into bins is slow on accelerators.
  classes = jnp.arange(num_classes, dtype=jnp.int32)[None, None, None]
  true, predicted = ((maps[..., None] == classes) & counted[..., None] for maps in (labels, predictions))
  share = lambda mask: mask.mean((1, 2), dtype=jnp.float32)
  return Overlap(share(true & predicted), share(true | predicted), share(counted))


def scores(intersection: np.ndarray, union: np.ndarray, counted: float) -> dict[str, np.ndarray | float]:
  """A benchmark's figures, from means (or sums) of an `Overlap` over all pictures: [C], [C] and a number.

  Returns 'iou' and 'f1', each [C] with NaN for a class in neither labels nor predictions, 'miou' and 'mean_f1', their
  means over the other classes, and 'accuracy', the share of pixels that are right.
  """
  intersection, union = np.asarray(intersection, np.float64), np.asarray(union, np.float64)
  present = union > 0
  iou = np.where(present, intersection / np.where(present, union, 1), np.nan)
  f1 = 2 * iou / (1 + iou)
  mean = lambda values: float(values[present].mean()) if present.any() else float('nan')
  accuracy = float(intersection.sum() / counted) if counted else float('nan')
  return {'iou': iou, 'f1': f1, 'miou': mean(iou), 'mean_f1': mean(f1), 'accuracy': accuracy}


def count_pairs(label: np.ndarray, found: np.ndarray, num_classes: int) -> np.ndarray:
  """How many pixels have each pair of classes: int64 [num_classes, num_classes], rows by `label`, columns by `found`.

  Label maps of one shape, any number of them together, on the host; every value must be below `num_classes`.
  """
  cell = label.astype(np.intp) * num_classes + found
  return np.bincount(cell.ravel(), minlength=num_classes**2).reshape(num_classes, num_classes)


def scores_of(confusion: np.ndarray) -> dict[str, np.ndarray | float]:
  """`scores` of a confusion matrix [C, C]."""
  intersection = np.diagonal(confusion)
  return scores(intersection, confusion.sum(0) + confusion.sum(1) - intersection, confusion.sum())


def _counts(prediction, target, threshold):
  if prediction.shape != target.shape or prediction.ndim < 2:
    raise UserError(f'masks of shapes {prediction.shape} and {target.shape}; both must be [B, H, W, 1] and alike')
  prediction, target = prediction > threshold, target > threshold
  pixels = tuple(range(1, target.ndim))
  return tuple(jnp.sum(mask, pixels, dtype=jnp.float32) for mask in (prediction & target, prediction, target))


def _ratio(part, whole):
  return jnp.where(whole > 0, part / jnp.maximum(whole, 1), 1.0)
