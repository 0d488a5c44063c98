"""Pixel-wise distances of picture pairs: floats [..., H, W, C] -> float32 [...], one value for each pair; and luma.

Any leading axes. UserError for integers or for shapes that differ.
"""

import jax
import jax.numpy as jnp

from jaxface.filters import picture_pair

# Equal pictures would be infinitely good; any two different 8-bit pictures of up to 226x226x3 stay below this.
PSNR_CAP = 100.0


def l1(a: jax.Array, b: jax.Array) -> jax.Array:
  """Mean |a - b| over pixels and channels, in the pictures' unit; 0 is best, lower is better."""
  a, b = picture_pair(a, b)
  return jnp.mean(jnp.abs(a - b), axis=(-3, -2, -1))


def rmse(a: jax.Array, b: jax.Array) -> jax.Array:
  """sqrt(mean (a - b)^2) over the pixels and channels of each picture, in its unit; 0 is best, lower is better.

  The root is taken per picture, so the mean over a data set is not the root of its mean squared error. The gradient of
  equal pictures is 0.
  """
  mse = _mse(a, b)
  return jnp.where(mse > 0, jnp.sqrt(jnp.where(mse > 0, mse, 1.0)), 0.0)


def psnr(a: jax.Array, b: jax.Array, *, max_val: float = 1.0) -> jax.Array:
  """Peak signal-to-noise ratio 10 log10(max_val^2 / mse) in decibels; higher is better.

  Capped at 100 dB, which equal pictures get, with gradient 0.
  """
  return psnr_of(_mse(a, b) / max_val**2)


def psnr_of(mse: jax.Array) -> jax.Array:
  """`psnr` of mean squared errors of pictures whose peak is 1, any shape."""
  return jnp.minimum(-10 * jnp.log10(jnp.maximum(mse, 10 ** (-PSNR_CAP / 10))), PSNR_CAP)


def _mse(a, b):
  a, b = picture_pair(a, b)
  return jnp.mean(jnp.square(a - b), axis=(-3, -2, -1))


def luma(image: jax.Array) -> jax.Array:
  """0.299 R + 0.587 G + 0.114 B: [..., 3] -> [..., 1]."""
  # Sums, not a matrix product: no accelerator should round them.
  return 0.299 * image[..., :1] + 0.587 * image[..., 1:2] + 0.114 * image[..., 2:]
