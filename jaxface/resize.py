"""Resizing as the public code that networks come from does it. Sizes are static.

`bilinear` and `nearest` are PyTorch's `interpolate`: no antialiasing, ever. `jax.image.resize` differs: it antialiases
where a picture shrinks, and takes nearest pixels from half-pixel centres. `bicubic_levels` is MATLAB's `imresize`.
Interpolation is one matrix product an axis, which every accelerator does fast, gradients too.
"""

# B batch | H,W pixels in | h,w pixels out | C channels

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def bilinear(x_BHWC: jax.Array, size: tuple[int, int], *, align_corners: bool) -> jax.Array:
  """[B, H, W, C] -> [B, h, w, C], `size` = (h, w); floats of any range, float32 inside, the input's dtype outside.

  With `align_corners` the corner pixels' centres of input and output coincide (pixel i lies at i (H - 1) / (h - 1));
  otherwise the pictures' edges do (at (i + 1/2) H / h - 1/2, clamped to the input).
  """
  y = x_BHWC.astype(jnp.float32)
  for axis, length in zip((1, 2), size, strict=True):
    if y.shape[axis] == length:
      continue
    weights = jnp.asarray(bilinear_weights(y.shape[axis], length, align_corners=align_corners))
    # Weights rounded to bfloat16, an accelerator's default, would shift edges by pixels.
    y = lax.dot_general(y, weights, (((axis,), (1,)), ((), ())), precision=lax.Precision.HIGHEST)
    y = jnp.moveaxis(y, -1, axis)
  return y.astype(x_BHWC.dtype)


def nearest(x_BHWC: jax.Array, size: tuple[int, int]) -> jax.Array:
  """[B, H, W, ...] -> [B, h, w, ...] of any dtype: output pixel i is input pixel floor(i H / h)."""
  for axis, length in zip((1, 2), size, strict=True):
    indices = nearest_indices(x_BHWC.shape[axis], length)
    times = max(length // x_BHWC.shape[axis], 1)
    if np.array_equal(indices, np.arange(length) // times):
      # A broadcast: unlike a gather, cheap everywhere, and its gradient a plain sum.
      x_BHWC = jnp.repeat(x_BHWC, times, axis) if times > 1 else lax.slice_in_dim(x_BHWC, 0, length, axis=axis)
    else:
      x_BHWC = jnp.take(x_BHWC, indices, axis)
  return x_BHWC


@jax.custom_vjp
def twice(x_BHWC: jax.Array) -> jax.Array:
  """Every pixel as 2x2 pixels: [B, H, W, C] -> [B, 2H, 2W, C]. Four gradients are summed in float32."""
  return lax.platform_dependent(x_BHWC, tpu=_twice_as_channels, default=_twice)


def _twice(x: jax.Array) -> jax.Array:
  return nearest(x, (2 * x.shape[1], 2 * x.shape[2]))


def _twice_as_channels(x: jax.Array) -> jax.Array:
  """A TPU puts a row's pixels side by side with themselves in a third of the time as so many more channels."""
  batch, height, width, channels = x.shape
  rows = jnp.concatenate([x, x], -1).reshape(batch, height, 1, 2 * width, channels)
  return jnp.broadcast_to(rows, (batch, height, 2, 2 * width, channels)).reshape(batch, 2 * height, 2 * width, channels)


def _sum_of_four(y: jax.Array) -> jax.Array:
  batch, height, width, channels = y.shape
  parts = y.reshape(batch, height // 2, 2, width // 2, 2, channels)
  return parts.sum((2, 4), dtype=jnp.float32).astype(y.dtype)


def _sum_of_four_by_window(y: jax.Array) -> jax.Array:
  """Like pooling, for which a TPU looks at everything but once."""
  sums = lax.reduce_window(y.astype(jnp.float32), 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), 'VALID')
  return sums.astype(y.dtype)


twice.defvjp(
  lambda x: (twice(x), None),
  lambda _, y: (lax.platform_dependent(y, tpu=_sum_of_four_by_window, default=_sum_of_four),),
)


def bicubic_levels(x_BHWC: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Grey levels 0..255 [B, H, W, C] -> whole grey levels [B, h, w, C], float32: MATLAB's `imresize` of uint8.

  Keys's cubic kernel with a = -0.5, stretched where the picture shrinks, so antialiased; edges repeated symmetrically.
  Rows first, then columns, rounded and clipped to 0..255 behind each: no gradients.
  """
  y = x_BHWC.astype(jnp.float32)
  for axis, length in zip((1, 2), size, strict=True):
    if y.shape[axis] == length:
      continue
    weights = jnp.asarray(bicubic_weights(y.shape[axis], length))
    y = lax.dot_general(y, weights, (((axis,), (1,)), ((), ())), precision=lax.Precision.HIGHEST)
    y = jnp.clip(jnp.floor(jnp.moveaxis(y, -1, axis) + 0.5), 0, 255)
  return y


def bicubic_weights(length: int, out_length: int) -> np.ndarray:
  """float32 [out_length, length]: the matrix that `bicubic_levels` resizes one axis with; rows sum to 1."""
  stretch = max(length / out_length, 1.0)
  centres = (np.arange(out_length) + 0.5) * (length / out_length) - 0.5
  margin = int(np.ceil(2 * stretch))
  pixels = np.arange(-margin, length + margin)
  x = np.abs(pixels[None] - centres[:, None]) / stretch
  near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
  kernel = np.where(x <= 1, near, np.where(x <= 2, far, 0))
  kernel /= kernel.sum(1, keepdims=True)
  mirrored = pixels % (2 * length)
  weights = np.zeros((out_length, length))
  np.add.at(weights, (slice(None), np.minimum(mirrored, 2 * length - 1 - mirrored)), kernel)
  return weights.astype(np.float32)


def bilinear_weights(length: int, out_length: int, *, align_corners: bool) -> np.ndarray:
  """float32 [out_length, length]: the matrix that resizes one axis; rows sum to 1 and have at most two entries."""
  i = np.arange(out_length)
  if align_corners:
    position = i * ((length - 1) / (out_length - 1) if out_length > 1 else 0.0)
  else:
    position = np.clip((i + 0.5) * (length / out_length) - 0.5, 0, None)
  low = np.minimum(position.astype(int), length - 1)
  high = np.minimum(low + 1, length - 1)
  share = position - low
  weights = np.zeros((out_length, length))
  np.add.at(weights, (i, low), 1 - share)
  np.add.at(weights, (i, high), share)
  return weights.astype(np.float32)


def nearest_indices(length: int, out_length: int) -> np.ndarray:
  """int [out_length]: which pixel along one axis each output pixel takes."""
  # In float32, as PyTorch computes it: 2 pixels to 82 break at 42 and not at 41.
  scale = np.float32(length) / np.float32(out_length)
  return np.minimum(np.floor(np.arange(out_length, dtype=np.float32) * scale).astype(int), length - 1)
