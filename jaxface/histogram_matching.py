"""BeautyGAN's makeup loss (Li et al. 2018, section 3.3): a face region's histogram becomes the reference's.

The regions, the match and the loss, as the public code has them, with static shapes: all of it compiles, on every
backend, for whole batches. Several regions of the same pictures share most of the work under `vmap` over the masks.
"""

# B batch | H,W pixels | P pixels of a picture | C colour channels | L = 256 levels

import jax
import jax.numpy as jnp
from jax import lax

from jaxface import labels
from jaxface.losses import l1_loss

_LEVELS = 256
# A level has two hexadecimal digits.
_BASE = 16


def regions(label: jax.Array, *, margin: int = 10, neck: bool = True) -> dict[str, jax.Array]:
  """The regions that wear makeup: 'lip', 'skin', 'left_eye' and 'right_eye', each float32 [B, H, W], 0 or 1.

  The eyes' are what is skin or nose in the box around the eye, so eye, brow and hair are left out; a box that would
  leave the picture is cut (in the public code one that leaves it at the top or left comes out empty or wrong). An eye
  that is not there has no region.

  Args:
    label: [B, H, W] integers in the project's order (`jaxface.labels`).
    margin: by how many pixels an eye's box is larger than the eye on each side; 10 is meant for 256x256 pixels.
    neck: count the neck as skin, as BeautyGAN does; PSGAN does not.
  """

  def among(*names: str) -> jax.Array:
    return jnp.isin(label, jnp.array([labels.index(name) for name in names], label.dtype))

  face = among('skin', 'nose')
  found = {
    'lip': among('u_lip', 'l_lip'),
    'skin': face | among('neck') if neck else face,
    'left_eye': face & _box_around(among('l_eye'), margin),
    'right_eye': face & _box_around(among('r_eye'), margin),
  }
  return {name: mask.astype(jnp.float32) for name, mask in found.items()}


def has_eyes(label: jax.Array) -> jax.Array:
  """Which label maps [B, H, W] show both eyes: bool [B]. The public code trains on no others."""
  return jnp.stack([(label == labels.index(name)).any((1, 2)) for name in ('l_eye', 'r_eye')]).all(0)


def _box_around(part: jax.Array, margin: int) -> jax.Array:
  """The bounding box of `part`, bool [B, H, W], enlarged by `margin` on each side; empty where `part` is."""

  def between(present: jax.Array) -> jax.Array:
    """[B, N] -> [B, N]: the places from the first that is present to the last, and the margin."""
    places = jnp.arange(present.shape[1])[None]
    first = jnp.argmax(present, 1, keepdims=True)
    last = present.shape[1] - 1 - jnp.argmax(present[:, ::-1], 1, keepdims=True)
    return (places >= first - margin) & (places <= last + margin) & present.any(1, keepdims=True)

  return between(part.any(2))[:, :, None] & between(part.any(1))[:, None, :]


def match_histogram(image: jax.Array, mask: jax.Array, reference: jax.Array, reference_mask: jax.Array) -> jax.Array:
  """`image` in its region, each channel's levels replaced so that their distribution is the reference region's.

  A level i in 1..254 becomes the smallest j in 1..255 with F_reference(j - 1) <= F(i) <= F_reference(j), F the share of
  the region's pixels at or below a level; where there is none it stays i. Levels 0 and 255 stay too. Shares are summed
  level after level in float32, as in the public code: which of equal shares are equal depends on it.

  Args:
    image: [B, H, W, 3], floats in [0, 255]; fractions are cut off.
    mask: [B, H, W], 1 in the region, else 0.
    reference: [B, h, w, 3], likewise.
    reference_mask: [B, h, w], likewise.

  Returns:
    float32 [B, H, W, 3] of whole numbers, 0 outside the region. Where the reference has no region, no level changes.
    No gradient comes through.
  """
  image, mask, reference, reference_mask = lax.stop_gradient((image, mask, reference, reference_mask))
  mask, reference_mask = mask.astype(jnp.float32), reference_mask.astype(jnp.float32)
  level_BCP = _to_bins(image)
  table_BCL = _transfer_table(_shares(level_BCP, mask), _shares(_to_bins(reference), reference_mask))
  matched = lax.platform_dependent(table_BCL, level_BCP, tpu=_look_up_by_product, default=_look_up)
  return matched.swapaxes(1, 2).reshape(image.shape) * mask[..., None]


def histogram_loss(generated: jax.Array, reference: jax.Array, mask: jax.Array, reference_mask: jax.Array) -> jax.Array:
  """Mean |generated - match_histogram(generated)| of each picture: float32 [B], in levels of 0..255.

  The mean is over all of a picture's pixels and channels, those outside the region counting as 0, so small regions
  weigh little; 0 where either picture lacks the region. The match is a constant to the gradient.

  Args:
    generated: [B, H, W, 3], floats in [-1, 1]; what lies outside is clipped, without gradient.
    reference: [B, h, w, 3], likewise.
    mask: [B, H, W], 1 in the region of `generated`, else 0.
    reference_mask: [B, h, w], that of `reference`.
  """
  generated, reference = (_to_levels(picture) for picture in (generated, reference))
  mask = mask.astype(jnp.float32) * reference_mask.any((1, 2)).astype(jnp.float32)[:, None, None]
  matched = match_histogram(generated, mask, reference, reference_mask)
  return jax.vmap(l1_loss)(generated * mask[..., None], matched)


def _to_levels(picture: jax.Array) -> jax.Array:
  return jnp.clip((picture.astype(jnp.float32) + 1) / 2, 0, 1) * 255


def _to_bins(image_BHWC: jax.Array) -> jax.Array:
  """The level that every value lies in: int32 [B, C, P]."""
  batch, _, _, channels = image_BHWC.shape
  level = jnp.clip(image_BHWC, 0, _LEVELS - 1).astype(jnp.int32)
  return level.reshape(batch, -1, channels).swapaxes(1, 2)


def _shares(level_BCP: jax.Array, mask_BHW: jax.Array) -> jax.Array:
  """F [B, C, L]: the share of the region's pixels at or below each level; zeros for an empty region."""
  mask_BCP = jnp.broadcast_to(mask_BHW.reshape(mask_BHW.shape[0], 1, -1), level_BCP.shape)
  # One pixel after another is the fastest way but on TPUs.
  counts = lax.platform_dependent(level_BCP, mask_BCP, tpu=_count_by_product, default=_count)
  total = jnp.broadcast_to(jnp.maximum(mask_BCP.sum(-1, keepdims=True), 1), counts.shape)
  # Behind the barrier XLA sees no common divisor, whose reciprocal it would multiply by: another rounding, other ties.
  return _sum_in_order(counts / lax.optimization_barrier(total))


def _count(level_BCP: jax.Array, mask_BCP: jax.Array) -> jax.Array:
  """How many of the region's pixels have each level, [B, C, L]."""
  return jax.vmap(jax.vmap(lambda level, mask: jnp.bincount(level, mask, length=_LEVELS)))(level_BCP, mask_BCP)


def _digits(level_BCP: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Which high and which low hexadecimal digit every level has: 0 or 1, each float32 [B, C, 16, P]."""
  return tuple(
    jax.nn.one_hot(digit, _BASE, axis=2, dtype=jnp.float32) for digit in (level_BCP // _BASE, level_BCP % _BASE)
  )


def _count_by_product(level_BCP: jax.Array, mask_BCP: jax.Array) -> jax.Array:
  """As `_count`; exact in any precision that an accelerator multiplies in, since sums are float32."""
  high, low = _digits(level_BCP)
  counts = jnp.einsum('bchp,bclp->bchl', high * mask_BCP[:, :, None], low, preferred_element_type=jnp.float32)
  return counts.reshape(*counts.shape[:2], _LEVELS)


def _look_up(table_BCL: jax.Array, level_BCP: jax.Array) -> jax.Array:
  """`table[level]` of every pixel and channel, float32 [B, C, P]."""
  return jnp.take_along_axis(table_BCL, level_BCP, axis=-1)


def _look_up_by_product(table_BCL: jax.Array, level_BCP: jax.Array) -> jax.Array:
  """As `_look_up`, likewise exact: levels have eight bits."""
  high, low = _digits(level_BCP)
  table = table_BCL.reshape(*table_BCL.shape[:2], _BASE, _BASE)
  rows = jnp.einsum('bchl,bclp->bchp', table, low, preferred_element_type=jnp.float32)
  return (rows * high).sum(2)


def _sum_in_order(values: jax.Array) -> jax.Array:
  """Running sums along the last axis, one addition after the other: `jnp.cumsum` adds in another order."""

  def add(total: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
    return (total + value,) * 2

  values = jnp.moveaxis(values, -1, 0)
  return jnp.moveaxis(lax.scan(add, jnp.zeros_like(values[0]), values, unroll=16)[1], 0, -1)


def _transfer_table(share: jax.Array, reference: jax.Array) -> jax.Array:
  """What becomes of each level: [..., L] and [..., L], non-decreasing -> float32 [..., L]."""
  level = jnp.broadcast_to(jnp.arange(_LEVELS), share.shape)
  # The smallest j >= 1 whose share is large enough is one more than the number of those that are too small.
  match = 1 + (reference[..., None, 1:] < share[..., :, None]).sum(-1)
  fits = (match < _LEVELS) & (reference[..., :1] <= share) & (level > 0) & (level < _LEVELS - 1)
  return jnp.where(fits, match, level).astype(jnp.float32)
