"""Group normalisation (Wu & He, 2018), with the scale and shift behind it, whose gradient keeps only its input.

Differentiated as it is written, the formula keeps several float32 arrays of the input's size for the backward pass, and
these are most of what a diffusion network in bfloat16 moves. Here the backward pass computes them again.
"""

# B batch | H,W pixels | C channels | G groups

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxface.layers import Dtype
from jaxface.meshes import TPU_ROWS, rows_per_device
from jaxface.moments import variance


class _Options(NamedTuple):
  groups: int
  epsilon: float
  offset: float
  unbiased: bool
  dtype: Dtype


def group_norm(
  x_BHWC: jax.Array,
  scale: jax.Array,
  shift: jax.Array,
  *,
  groups: int,
  epsilon: float = 1e-5,
  offset: float = 0.0,
  unbiased: bool = False,
  dtype: Dtype = jnp.float32,
) -> jax.Array:
  """normalised (offset + scale) + shift, [B, H, W, C] in `dtype`; computed in float32.

  Args:
    x_BHWC: float, of any type.
    scale, shift: of one shape that fits x: [1, 1, 1, C], or maps [B or 1, H, W, C].
    groups: neighbouring channels that share a mean and a variance are C / groups; must divide C.
    epsilon: added to the variance.
    offset: 0, or 1 where `scale` is how much to scale more.
    unbiased: divide by the unbiased standard deviation, to which epsilon is added; as MUNIT (Huang et al. 2018) has it.
    dtype: of the result.
  """
  return _group_norm(_Options(groups, epsilon, offset, unbiased, jnp.dtype(dtype)), x_BHWC, scale, shift)


def _mean(values_BHWC: jax.Array, groups: int) -> jax.Array:
  """Mean of every group, for each of its channels: [B, 1, 1, C]."""
  # Axis by axis: all values at once round badly where features hardly vary. Features are never cut into groups
  # themselves: what is small is then spread by a plain broadcast, which costs no memory.
  mean_BC = values_BHWC.mean(1).mean(1)
  mean_BG = mean_BC.reshape(len(mean_BC), groups, -1).mean(-1)
  return jnp.repeat(mean_BG, mean_BC.shape[-1] // groups, axis=-1)[:, None, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _group_norm(options: _Options, x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
  return _forward(options, x, scale, shift)[0]


def _forward(options, x, scale, shift):
  values = x.astype(jnp.float32)
  mean = _mean(values, options.groups)
  var = variance(x, mean, lambda values: _mean(values, options.groups))
  factor, bend = _factor(options, var, x[0].size // options.groups)
  y = (values - mean) * factor * (options.offset + scale.astype(jnp.float32)) + shift.astype(jnp.float32)
  return y.astype(options.dtype), (x, scale, shift, mean, factor, bend)


def _factor(options: _Options, var: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
  """What centred features are multiplied by, and -2 times its slope by the variance of `count` values."""
  if not options.unbiased:
    factor = jax.lax.rsqrt(var + options.epsilon)
    return factor, factor**3
  share = count / (count - 1)
  # The root's slope at 0 is infinite: a flat picture, 0 behind the norm, must not send NaN back.
  std = jnp.sqrt(jnp.maximum(var * share, 1e-30))
  factor = 1 / (std + options.epsilon)
  return factor, factor**2 * share / std


def _differentiated(options, x, scale, shift):
  # In strips, means and variances would be spread into whole float32 maps, forward and backward.
  if rows_per_device(len(x)) < TPU_ROWS:
    x = jax.lax.platform_dependent(x, tpu=jax.lax.optimization_barrier, default=lambda x: x)
  return _forward(options, x, scale, shift)


def _backward(options, saved, gradient):
  x, scale, shift, mean, factor, bend = saved
  gradient = gradient.astype(jnp.float32)
  centred = x.astype(jnp.float32) - mean
  inner = gradient * (options.offset + scale.astype(jnp.float32))
  to_x = factor * (inner - _mean(inner, options.groups)) - centred * (bend * _mean(inner * centred, options.groups))
  return to_x.astype(x.dtype), _summed_to(gradient * (centred * factor), scale), _summed_to(gradient, shift)


def _summed_to(gradient: jax.Array, like: jax.Array) -> jax.Array:
  """The gradient of what was broadcast."""
  axes = tuple(i for i, (own, all_) in enumerate(zip(like.shape, gradient.shape, strict=True)) if own != all_)
  return gradient.sum(axes, keepdims=True).astype(like.dtype)


_group_norm.defvjp(_differentiated, _backward)
