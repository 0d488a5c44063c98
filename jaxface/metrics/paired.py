"""The metrics of picture pairs that need no network, by name: what each computes, leaves open, and needs."""

import functools
from collections.abc import Callable

import jax

from jaxface.metrics import pixel, vif
from jaxface.ssim import ms_ssim, ms_ssim_least_side, ssim

# (reference, picture), floats [B, H, W, 3] in [0, 1] -> float32 [B].
Measure = Callable[[jax.Array, jax.Array], jax.Array]


def measures(window: int) -> dict[str, Measure]:
  """All of them; `window` is the side of the Gaussian window of SSIM and MS-SSIM."""
  return {
    'l1': pixel.l1,
    'rmse': pixel.rmse,
    'psnr': pixel.psnr,
    'ssim': functools.partial(ssim, filter_size=window),
    'ms_ssim': functools.partial(ms_ssim, filter_size=window),
    'vif': vif.vif,
  }


def told(window: int) -> dict[str, str]:
  """What the names leave open."""
  gaussian = f'Gaussian window {window}, sigma 1.5'
  return {
    'l1': 'pictures in [0, 1]',
    'rmse': 'pictures in [0, 1], root per picture, mean over pictures',
    'psnr': 'dB, mean over pictures',
    'ssim': gaussian,
    'ms_ssim': f'five scales, {gaussian}',
    'vif': 'pixel domain, 4 scales, mean over RGB',
  }


def least_side(name: str, window: int) -> int:
  """The shortest side of a picture that metric `name` is defined for."""
  return {'ssim': window, 'ms_ssim': ms_ssim_least_side(window), 'vif': vif.LEAST_SIDE}.get(name, 1)
