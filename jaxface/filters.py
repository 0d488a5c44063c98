"""Gaussian windows over pictures, mostly as two banded matrix products: what SSIM and VIF spend their time on.

Pictures are filtered as planes, float32 [H, K, W] with K = batch * channels, since then neither product needs a
transposed copy: W is contracted from the right, H from the left, each one plain matrix product over the whole batch.
Convolutions of so few channels are slow to differentiate on every backend; matrix units make the zeros cheap. Those of
GPUs know no float32: there the taps are summed.
"""

# H,W pixels | H',W' = H,W - size + 1 window positions | K planes, picture-major then channel

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxface.errors import UserError, check_floats


def gaussian(size: int, sigma: float) -> np.ndarray:
  """Gaussian window, float32 [size], sum 1, centred (between two taps where `size` is even)."""
  if size < 1 or sigma <= 0:
    raise UserError(f'no Gaussian window has size {size} and sigma {sigma}; size is at least 1, sigma above 0')
  taps = np.exp(-0.5 * np.square((np.arange(size) - (size - 1) / 2) / sigma))
  return (taps / taps.sum()).astype(np.float32)


def blur(planes: jax.Array, window: np.ndarray) -> jax.Array:
  """Filter [H, K, W] by the separable `window` [size] where it fits ('valid') -> [H', K, W'], float32."""
  forms = {'cpu': blur_as_two_matrices, 'tpu': blur_along_two_axes, 'default': blur_by_taps}
  return jax.lax.platform_dependent(planes, **{k: functools.partial(form, window=window) for k, form in forms.items()})


# Variances are differences of two blurred values: less than full float32 would leave only noise of them.
_product = functools.partial(jax.lax.dot_general, precision=jax.lax.Precision.HIGHEST)


def blur_along_two_axes(planes: jax.Array, window: np.ndarray) -> jax.Array:
  """`blur` for TPUs.

  K stays an axis of its own: merged with H, planes that are spread over devices would be gathered on each of them.
  """
  rows = _product(planes, band(planes.shape[2], window), (((2,), (1,)), ((), ())))
  return _product(band(planes.shape[0], window), rows, (((1,), (0,)), ((), ())))


def blur_as_two_matrices(planes: jax.Array, window: np.ndarray) -> jax.Array:
  """`blur` for a CPU, where XLA would copy the three axes of the other form about, and take three times as long."""
  height, count, width = planes.shape
  rows = _product(planes.reshape(height * count, width), band(width, window), (((1,), (1,)), ((), ())))
  width = rows.shape[1]
  columns = _product(band(height, window), rows.reshape(height, count * width), (((1,), (0,)), ((), ())))
  return columns.reshape(len(columns), count, width)


def blur_by_taps(planes: jax.Array, window: np.ndarray) -> jax.Array:
  """`blur` for GPUs: sums of shifted planes become parts of the operations around them."""
  for axis in (2, 0):
    length = planes.shape[axis] - len(window) + 1
    shifted = [jax.lax.slice_in_dim(planes, i, i + length, axis=axis) for i in range(len(window))]
    planes = sum(tap * each for tap, each in zip(window.tolist(), shifted, strict=True))
  return planes


def to_planes(pictures: jax.Array) -> jax.Array:
  """[..., H, W, C] -> [H, K, W]."""
  height, width, channels = pictures.shape[-3:]
  count = math.prod(pictures.shape[:-3])
  pictures = pictures.reshape(count, height, width, channels)
  return pictures.transpose(1, 0, 3, 2).reshape(height, count * channels, width)


def from_planes(planes: jax.Array, batch: tuple[int, ...], channels: int) -> jax.Array:
  """[H, K, W] -> [*batch, H, W, C]; inverse of `to_planes`."""
  height, _, width = planes.shape
  pictures = planes.reshape(height, math.prod(batch), channels, width).transpose(1, 0, 3, 2)
  return pictures.reshape(*batch, height, width, channels)


def picture_pair(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Both as float32. UserError where they are not floats [..., H, W, C] of one shape."""
  a, b = jnp.asarray(a), jnp.asarray(b)
  if a.shape != b.shape or a.ndim < 3:
    raise UserError(f'cannot compare shapes {a.shape} and {b.shape}; give two pictures [..., H, W, C] of one shape')
  for x in (a, b):
    check_floats(x, 'a comparison')
  return a.astype(jnp.float32), b.astype(jnp.float32)


def band(length: int, window: np.ndarray) -> np.ndarray:
  """The matrix [length - size + 1, length] whose product with a signal is the signal filtered by `window`."""
  positions = length - len(window) + 1
  assert positions > 0, (length, len(window))
  band = np.zeros((positions, length), np.float32)
  rows = np.arange(positions)
  for offset, tap in enumerate(window):
    band[rows, rows + offset] = tap
  return band
