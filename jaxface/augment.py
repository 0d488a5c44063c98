"""Augmentation on the device, inside the jitted step, on dm-pix: one draw for a picture and all that goes with it.

Pictures are float [0, 1], label maps int, masks float [0, 1]; B rows each, every row with a random key of its own.
"""

import dataclasses

import dm_pix as pix
import jax
import jax.numpy as jnp

from jaxface import labels
from jaxface.errors import check_at_least

Batch = dict[str, jax.Array]


def to_float(image: jax.Array) -> jax.Array:
  """uint8 0..255 -> float32 [0, 1]; floats are taken to be in [0, 1] already."""
  return image.astype(jnp.float32) / (255 if image.dtype == jnp.uint8 else 1)


def to_signed(image: jax.Array) -> jax.Array:
  """uint8, or floats in [0, 1] -> float32 in [-1, 1]."""
  return 2 * to_float(image) - 1


def to_unit(image: jax.Array) -> jax.Array:
  """[-1, 1] and beyond -> [0, 1]."""
  return jnp.clip((image + 1) / 2, 0, 1)


@dataclasses.dataclass(frozen=True)
class Augment:
  """What to vary. Everything is off by default, as in the face-mask VAE's recipe."""

  flip: bool = False  # Mirror half of the rows; left and right labels change places.
  crop_pixels: int = 0  # Shift by up to so many pixels: pad by the edge, crop at random.
  brightness: float = 0.0  # Add U(-b, b).
  contrast: float = 0.0  # Factor U(1 - c, 1 + c) about the mean.
  saturation: float = 0.0  # Factor U(1 - s, 1 + s).

  def __post_init__(self) -> None:
    check_at_least(0, self, 'crop_pixels', 'brightness', 'contrast', 'saturation', part='augment.')

  def __call__(self, batch: Batch, keys: jax.Array) -> Batch:
    """Augments a batch: 'image' [B, H, W, 3], and 'mask' [B, H, W, 1] and 'label' [B, H, W] if there; keys [B]."""
    known = {name: batch[name] for name in ('image', 'mask', 'label') if name in batch}
    return {**batch, **jax.vmap(self._one)(known, keys)}

  def _one(self, example: Batch, key: jax.Array) -> Batch:
    flip_key, crop_key, brightness_key, contrast_key, saturation_key = jax.random.split(key, 5)
    if self.flip:
      example = _mirrored_or_not(flip_key, example)
    if self.crop_pixels:
      example = {name: _shift(crop_key, value, self.crop_pixels) for name, value in example.items()}
    image = example['image']
    if self.brightness:
      image = pix.random_brightness(brightness_key, image, self.brightness)
    if self.contrast:
      image = pix.random_contrast(contrast_key, image, 1 - self.contrast, 1 + self.contrast)
    if self.saturation:
      image = pix.random_saturation(saturation_key, image, 1 - self.saturation, 1 + self.saturation)
    return {**example, 'image': jnp.clip(image, 0, 1)}


def flip(name: str, value: jax.Array) -> jax.Array:
  """Mirrors one field of an example; in a 'label' map left parts become right ones (`labels.MIRROR`)."""
  if name == 'label':
    return jnp.asarray(labels.MIRROR)[value[:, ::-1]].astype(value.dtype)
  return pix.flip_left_right(value)


def _mirrored_or_not(key: jax.Array, example: Batch) -> Batch:
  mirrored = jax.random.bernoulli(key)
  return {name: jnp.where(mirrored, flip(name, value), value) for name, value in example.items()}


def _shift(key: jax.Array, value: jax.Array, pixels: int) -> jax.Array:
  planes = value if value.ndim == 3 else value[..., None]
  padded = jnp.pad(planes, ((pixels, pixels), (pixels, pixels), (0, 0)), mode='edge')
  return pix.random_crop(key, padded, planes.shape).reshape(value.shape)


def scaled_crop(
  image: jax.Array, label: jax.Array, scale: jax.Array, offset: jax.Array, size: int, method: str = 'linear'
) -> tuple[jax.Array, jax.Array]:
  """The square of `size` at `offset` (row, column) of a picture enlarged by `scale`, and of its label map.

  [H, W, 3] in [0, 1] and [H, W] -> [size, size, 3], by `method` ('linear' or 'cubic'), antialiased where the scale is
  below 1, and [size, size], nearest. Enlarging and cropping at once keeps shapes static: only the crop's pixels are
  ever computed.
  """
  crop = jax.image.scale_and_translate(
    image, (size, size, 3), (0, 1), jnp.stack([scale, scale]), -offset, method, antialias=True
  )
  centres = (jnp.arange(size)[None] + 0.5 + offset[:, None]) / scale
  rows, columns = jnp.clip(jnp.floor(centres).astype(jnp.int32), 0, label.shape[0] - 1)
  return jnp.clip(crop, 0, 1), label[rows][:, columns]


@dataclasses.dataclass(frozen=True)
class Zoom:
  """A square of random size somewhere in the picture, enlarged to the picture's size; half of the rows mirrored.

  SDM's public code shrinks the original picture instead, whose finest detail a stored picture of that size lacks: here
  pictures are softer, by a cubic kernel less than by a linear one.

  Attributes:
    least: the square's side is drawn from U(least, 1) of the picture's; 1 for the whole picture.
    flip: mirror half of the rows; left and right labels change places.
  """

  least: float = 1.0
  flip: bool = False

  def __call__(self, batch: Batch, keys: jax.Array) -> Batch:
    """'image' float [B, S, S, 3] in [0, 1] and 'label' [B, S, S]; keys [B]."""
    crop_keys, rest_keys = jax.vmap(lambda key: jax.random.split(key))(keys).T
    batch = Augment(flip=self.flip)(batch, rest_keys)
    if self.least == 1:
      return batch
    image, label = jax.vmap(self._zoomed)(batch['image'], batch['label'], crop_keys)
    return {**batch, 'image': image, 'label': label}

  def _zoomed(self, image: jax.Array, label: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    share_key, offset_key = jax.random.split(key)
    scale = 1 / jax.random.uniform(share_key, (), minval=self.least, maxval=1)
    size = image.shape[0]
    offset = jax.random.uniform(offset_key, (2,)) * (scale - 1) * size
    return scaled_crop(image, label, scale, offset, size, 'cubic')


@dataclasses.dataclass(frozen=True)
class Framing:
  """Which square of a picture a network sees, and whether mirrored; one draw for a picture and all that goes with it.

  Attributes:
    crop_size: side of the square.
    random_crop: in training, anywhere in the picture; otherwise, and in evaluation, in its middle.
    flip: in training, mirror half of the rows; left and right labels change places.
  """

  crop_size: int
  random_crop: bool = False
  flip: bool = False

  def centred(self, fields: Batch) -> Batch:
    """The middle of every field [B, S, S] or [B, S, S, C]."""
    return {name: self._cut(value, self._middle(value), axis=1) for name, value in fields.items()}

  def drawn(self, fields: Batch, keys: jax.Array) -> Batch:
    """A square of every row of the fields, drawn by the row's key; keys [B]."""
    return jax.vmap(self._drawn_one)(fields, keys)

  def _drawn_one(self, example: Batch, key: jax.Array) -> Batch:
    crop_key, flip_key = jax.random.split(key)
    size = next(iter(example.values())).shape[0]
    offset = (size - self.crop_size) // 2
    if self.random_crop:
      offset = jax.random.randint(crop_key, (2,), 0, size - self.crop_size + 1)
    example = {name: self._cut(value, offset, axis=0) for name, value in example.items()}
    return _mirrored_or_not(flip_key, example) if self.flip else example

  def _middle(self, value: jax.Array) -> int:
    return (value.shape[1] - self.crop_size) // 2

  def _cut(self, value: jax.Array, offset: jax.Array | int, axis: int) -> jax.Array:
    row, column = jnp.broadcast_to(jnp.asarray(offset), (2,))
    value = jax.lax.dynamic_slice_in_dim(value, row, self.crop_size, axis)
    return jax.lax.dynamic_slice_in_dim(value, column, self.crop_size, axis + 1)
