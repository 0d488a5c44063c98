"""Visual information fidelity in the pixel domain (Sheikh & Bovik 2006, "VIFp"): four scales of Gaussian windows."""

# H,W pixels of the scale at hand | K planes

import jax
import jax.numpy as jnp

from jaxface.errors import UserError
from jaxface.filters import blur, gaussian, picture_pair, to_planes
from jaxface.metrics import pixel

WINDOWS = (17, 9, 5, 3)
LEAST_SIDE = 41

# Variance of the eye's own noise, for pictures in 0..255.
_NOISE = 2.0
_EPSILON = 1e-10


def vif(reference: jax.Array, distorted: jax.Array, *, luma: bool = False) -> jax.Array:
  """Pixel-domain VIF of `distorted` against `reference`, floats [..., H, W, 3] in [0, 1] -> [...]; higher is better.

  0: nothing of the reference is left; 1: equal pictures; above 1 where `distorted` has more contrast. Not symmetric.
  Pictures are scaled to 0..255 inside, for which the noise variance 2 is meant. The score is the mean of the three
  channels' scores, as the sewar package has it; with `luma` that of 0.299 R + 0.587 G + 0.114 B. A flat reference holds
  no information to lose: 1. Computed in float32; gradients are finite.

  UserError below 41 pixels a side.
  """
  reference, distorted = picture_pair(reference, distorted)
  *batch, height, width, channels = reference.shape
  if min(height, width) < LEAST_SIDE:
    raise UserError(f'VIF needs {LEAST_SIDE} pixels a side; these pictures have {height}x{width}')
  if luma:
    if channels != 3:
      raise UserError(f'luma needs RGB pictures; these have {channels} channels')
    reference, distorted, channels = pixel.luma(reference), pixel.luma(distorted), 1
  reference_HKW, distorted_HKW = _centred(reference), _centred(distorted)
  kept, available = 0.0, 0.0
  for scale, size in enumerate(WINDOWS):
    window = gaussian(size, size / 5)
    if scale:
      reference_HKW, distorted_HKW = (blur(x, window)[::2, :, ::2] for x in (reference_HKW, distorted_HKW))
    kept_K, available_K = _information(reference_HKW, distorted_HKW, window)
    kept, available = kept + kept_K, available + available_K
  # The guards cancel for equal pictures and are far below the information of any window that is not flat.
  score_K = (kept + _EPSILON) / (available + _EPSILON)
  return score_K.reshape(*batch, channels).mean(-1)


def _centred(pictures):
  """Planes in 0..255 less their mean: no variance changes, but far smaller squares cancel in float32."""
  planes_HKW = to_planes(pictures * 255)
  return planes_HKW - jax.lax.stop_gradient(planes_HKW.mean((0, 2), keepdims=True))


def _information(reference_HKW, distorted_HKW, window):
  """What of the reference reaches the eye through the distortion, and what without it: [K] each, in log10 units."""
  mean_r, mean_d = blur(reference_HKW, window), blur(distorted_HKW, window)
  var_r = jnp.maximum(blur(jnp.square(reference_HKW), window) - jnp.square(mean_r), 0)
  var_d = jnp.maximum(blur(jnp.square(distorted_HKW), window) - jnp.square(mean_d), 0)
  cov = blur(reference_HKW * distorted_HKW, window) - mean_r * mean_d
  # The model: distorted = gain * reference + noise, window by window. A flat window carries nothing, and neither does
  # an inverted one.
  carries = (var_r >= _EPSILON) & (var_d >= _EPSILON) & (cov >= 0)
  gain = jnp.where(carries, cov / (var_r + _EPSILON), 0.0)
  noise = jnp.maximum(var_d - gain * cov, _EPSILON)
  kept = jnp.log10(1 + jnp.square(gain) * var_r / (noise + _NOISE))
  return kept.sum((0, 2)), jnp.log10(1 + var_r / _NOISE).sum((0, 2))
