"""How fast two operations are that this package has its own form of, each in turn with its peer's."""

import functools
from collections.abc import Callable
from typing import Any

import dm_pix as pix
import jax
import jax.numpy as jnp

from jaxface.benchmark.meter import Meter, Row
from jaxface.conv import conv3x3
from jaxface.plain_conv import LAYOUT
from jaxface.ssim import ssim


def ssim_row(meter: Meter) -> Row:
  """SSIM's value and gradient against dm-pix's."""
  shape, window = (32, 144, 144, 3), 9
  a, b = (jax.random.uniform(jax.random.key(i), shape) for i in range(2))

  def gradient(measure: Callable[[jax.Array, jax.Array], jax.Array]) -> Callable[[], Any]:
    jitted = jax.jit(jax.value_and_grad(lambda b, a: measure(a, b).mean()))
    return lambda: jitted(b, a)

  return meter.row_in_turn(
    f'SSIM, value and gradient, {"x".join(map(str, shape))}, window {window}; in turn with dm_pix.ssim',
    gradient(functools.partial(ssim, filter_size=window)),
    gradient(functools.partial(pix.ssim, filter_size=window)),
    peer='dm_pix',
    images=shape[0],
  )


def conv_row(meter: Meter) -> Row:
  """A convolution and its gradients against `lax`'s."""
  shape, channels = (16, 144, 144, 32), 32
  x = jax.random.normal(jax.random.key(0), shape)
  kernel = jax.random.normal(jax.random.key(1), (3, 3, shape[-1], channels)) * 0.05

  def gradients(convolve: Callable[[jax.Array, jax.Array], jax.Array]) -> Callable[[], Any]:
    jitted = jax.jit(jax.grad(lambda x, kernel: jnp.square(convolve(x, kernel)).mean(), argnums=(0, 1)))
    return lambda: jitted(x, kernel)

  def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=LAYOUT)

  return meter.row_in_turn(
    f'3x3 convolution and both gradients, {"x".join(map(str, shape))} to {channels} channels; '
    'in turn with lax.conv_general_dilated',
    gradients(conv3x3),
    gradients(plain),
    peer='lax',
    images=shape[0],
  )
