"""Structural similarity: dm-pix's formula on a faster filter, with face-mask weights; and MS-SSIM on top of it.

`dm_pix.ssim` blurs five products of the two pictures and combines them pixel by pixel. It lets the caller bring the
blur; nearly all its time goes there, and `filters.blur` is several times faster, differentiated or not. The numbers
are `tf.image`'s up to float32 rounding.
"""

# B batch (any leading axes) | H,W pixels, C channels | H',W' window positions | K = B * C planes

import functools
import math

import dm_pix
import jax
import jax.numpy as jnp

from jaxface.errors import UserError
from jaxface.filters import blur, from_planes, gaussian, picture_pair, to_planes
from jaxface.ssim_kernel import Similarity, mean_ssim

# Wang et al. 2003, section 3.2: exponents of the five scales, finest first.
MS_SSIM_POWERS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)

# A luminance constant so large against pictures in [0, 1] that the luminance factor rounds to exactly 1, which leaves
# SSIM's contrast-structure factor; a power of two, so that multiplying by it is exact.
_NO_LUMINANCE_K1 = 2.0**14


def ssim(
  a: jax.Array,
  b: jax.Array,
  *,
  max_val: float = 1.0,
  filter_size: int = 11,
  filter_sigma: float = 1.5,
  k1: float = 0.01,
  k2: float = 0.03,
  mask: jax.Array | None = None,
  return_map: bool = False,
  fused: bool = False,
) -> jax.Array:
  """Structural similarity of picture pairs [..., H, W, C] in [0, max_val] -> [...] in [-1, 1]; higher is better.

  Wang et al. 2004, as `tf.image.ssim` computes it: Gaussian window, only positions where it fits, biased covariances,
  mean over positions and channels, negative values kept. No colour conversion. Any float type; computed in float32.
  Gradients are finite everywhere. Symmetric; 1 for equal pictures.

  With `mask` [..., H, W, 1] in [0, 1] the mean over positions is weighted by the mask under each window, that is by the
  mask filtered as the pictures are. Pixels further than filter_size - 1 from the mask have no influence, nearer ones
  have through windows across its edge. Where the mask is all zero there is nothing to tell apart: 1, with gradient 0.

  `return_map` gives every position's value instead, [..., H', W', C] with H', W' = H, W - filter_size + 1.

  `fused` computes value and gradient by one kernel on TPU, see `jaxface.ssim_kernel`; elsewhere the result is the same.
  It is differentiable once, and not to be used within a `shard_map` of one's own; a program for several devices is to
  be traced in the context of their mesh, with pictures spread over all of it.

  UserError for shapes or types that do not fit, pictures smaller than the window, or two of mask, return_map and fused.
  """
  a, b = picture_pair(a, b)
  *batch, height, width, channels = a.shape
  if min(height, width) < filter_size:
    raise UserError(
      f'{height}x{width} pictures are smaller than filter_size={filter_size}; it can be at most {min(height, width)}'
    )
  if (mask is not None) + return_map + fused > 1:
    raise UserError(
      'a mask weighs the mean of the map and not the map, which a fused kernel never has; '
      'give either mask or return_map or fused'
    )
  window = gaussian(filter_size, filter_sigma)
  a_HKW, b_HKW = to_planes(a / max_val), to_planes(b / max_val)
  if fused:
    by_kernel = functools.partial(_mean_by_kernel, Similarity(tuple(map(float, window)), k1, k2))
    by_map = lambda a_HKW, b_HKW: _ssim_map(a_HKW, b_HKW, window, k1, k2).mean((0, 2))
    mean_K = jax.lax.platform_dependent(a_HKW, b_HKW, tpu=by_kernel, default=by_map)
    return mean_K.reshape(*batch, channels).mean(-1)
  map_HKW = _ssim_map(a_HKW, b_HKW, window, k1, k2)
  if return_map:
    return from_planes(map_HKW, tuple(batch), channels)
  if mask is None:
    return map_HKW.mean((0, 2)).reshape(*batch, channels).mean(-1)
  mask = jnp.asarray(mask, jnp.float32)
  if mask.shape != (*batch, height, width, 1):
    raise UserError(f'mask of shape {mask.shape} does not fit; these pictures need {(*batch, height, width, 1)}')
  weight_HBW = blur(to_planes(mask), window)
  total_B = weight_HBW.sum((0, 2))
  map_HBW = map_HKW.reshape(len(map_HKW), weight_HBW.shape[1], channels, map_HKW.shape[-1]).mean(2)
  mean_B = (weight_HBW * map_HBW).sum((0, 2)) / jnp.where(total_B > 0, total_B, 1.0)
  return jnp.where(total_B > 0, mean_B, 1.0).reshape(batch)


def ms_ssim(
  a: jax.Array,
  b: jax.Array,
  *,
  max_val: float = 1.0,
  filter_size: int = 11,
  filter_sigma: float = 1.5,
  k1: float = 0.01,
  k2: float = 0.03,
  power_factors: tuple[float, ...] = MS_SSIM_POWERS,
) -> jax.Array:
  """Multi-scale SSIM of picture pairs [..., H, W, C] in [0, max_val] -> [...] in [0, 1]; higher is better.

  Wang et al. 2003, as `tf.image.ssim_multiscale` computes it. Per channel: the mean contrast-structure term of every
  scale but the last, whose mean SSIM includes the luminance; each clipped below at 0, raised to its power, multiplied;
  then the mean over channels. Between scales 2x2 means; an odd side first repeats its last row or column. Fewer
  `power_factors` mean fewer scales and are not renormalised. Any float type; computed in float32. Gradients are finite;
  through a clipped term they are 0.

  UserError where the pictures are too small: five scales need 161 pixels for filter_size 11, and 129 for 9.
  """
  a, b = picture_pair(a, b)
  *batch, height, width, channels = a.shape
  if not power_factors:
    raise UserError('power_factors is empty; give one power for each scale')
  _check_scales(height, width, filter_size, len(power_factors))
  window = gaussian(filter_size, filter_sigma)
  a_HKW, b_HKW = to_planes(a / max_val), to_planes(b / max_val)
  result_K = 1.0
  for power in power_factors[:-1]:
    result_K *= _power(_ssim_map(a_HKW, b_HKW, window, _NO_LUMINANCE_K1, k2).mean((0, 2)), power)
    a_HKW, b_HKW = _halve(a_HKW), _halve(b_HKW)
  result_K *= _power(_ssim_map(a_HKW, b_HKW, window, k1, k2).mean((0, 2)), power_factors[-1])
  return result_K.reshape(*batch, channels).mean(-1)


def _ssim_map(a_HKW, b_HKW, window, k1, k2):
  # To dm-pix the planes are one tall picture of K columns; only the filter knows which axes are the picture's.
  return dm_pix.ssim(a_HKW, b_HKW, k1=k1, k2=k2, filter_fn=functools.partial(blur, window=window), return_map=True)


def _mean_by_kernel(similarity, a_HKW, b_HKW):
  return mean_ssim(similarity, a_HKW.transpose(1, 0, 2), b_HKW.transpose(1, 0, 2))


def _power(term, exponent):
  """max(term, 0) ** exponent, whose derivative at 0 is taken as 0 and not as 0 * inf."""
  positive = term > 0
  return jnp.where(positive, jnp.where(positive, term, 1.0) ** exponent, 0.0)


def _halve(planes_HKW):
  height, _, width = planes_HKW.shape
  planes_HKW = jnp.pad(planes_HKW, ((0, height % 2), (0, 0), (0, width % 2)), mode='edge')
  rows = planes_HKW[::2] + planes_HKW[1::2]
  return 0.25 * (rows[..., ::2] + rows[..., 1::2])


def ms_ssim_least_side(filter_size: int, scales: int = len(MS_SSIM_POWERS)) -> int:
  """The smallest side, in pixels, of pictures that `ms_ssim` takes: 161 for filter_size 11, 129 for 9."""
  return (filter_size - 1) * 2 ** (scales - 1) + 1


def _check_scales(height, width, filter_size, scales):
  side = min(height, width)
  least_side = ms_ssim_least_side(filter_size, scales)
  if side >= least_side:
    return
  message = f'{height}x{width} pictures are too small for {scales} scales with filter_size={filter_size}'
  largest_filter = (side - 1) // 2 ** (scales - 1) + 1
  ways_out = [f'sides of {least_side} or more', f'filter_size up to {largest_filter}']
  if side >= filter_size:
    ways_out.append(f'{1 + int(math.log2((side - 1) // (filter_size - 1)))} power_factors')
  raise UserError(f'{message}; what works: {", or ".join(ways_out)}')
