"""Convolutions by windows of any size and stride, and their transposes, with kernel gradients that are fast on a CPU.

The same three gradients of one trilinear form as in `jaxface.conv`, which knows more tricks for 3x3. XLA's CPU backend
writes a kernel gradient as a convolution with a picture-sized window: for a 4x4 transposed convolution of 64x64 pixels
and 256 channels that takes 30 times as long as the matrix product below, for 7x7 to three channels 10 times. Only a
program lowered for CPU contains the product.
"""

# B batch | H,W pixels of x | h,w pixels of y | I channels of x | O channels of y

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

# What is written for one matrix product should stay in the last-level cache; beyond, it is one a picture.
_CHUNK_BYTES = 2**24

_LAYOUT = ('NHWC', 'HWIO', 'NHWC')


class _Geometry(NamedTuple):
  """Windows of size x size pixels, `stride` apart, on x with `pad` zeros on every side."""

  size: int
  stride: int
  pad: int
  height: int
  width: int

  def outputs(self) -> tuple[int, int]:
    """Rows and columns of y."""
    return tuple((side + 2 * self.pad - self.size) // self.stride + 1 for side in (self.height, self.width))


def _by_window(geometry: _Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
  strides, padding = (geometry.stride,) * 2, ((geometry.pad,) * 2,) * 2
  return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=_LAYOUT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(geometry: _Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """[B, h, w, O]."""
  return _by_window(geometry, x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _transpose(geometry: _Geometry, y: jax.Array, kernel: jax.Array) -> jax.Array:
  """[B, H, W, I]."""
  # Made of y, so that under shard_map it varies over the same axes; nothing is computed of it.
  x = jnp.broadcast_to(y[:, :1, :1, :1], (y.shape[0], geometry.height, geometry.width, kernel.shape[2]))
  return jax.linear_transpose(lambda x: _by_window(geometry, x, kernel), x)(y)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _kernel_gradient(geometry: _Geometry, x: jax.Array, y: jax.Array) -> jax.Array:
  """[size, size, I, O]."""
  return lax.platform_dependent(
    x,
    y,
    cpu=functools.partial(_kernel_gradient_by_product, geometry),
    default=functools.partial(_kernel_gradient_by_window, geometry),
  )


_convolve.defvjp(
  lambda geometry, x, kernel: (_convolve(geometry, x, kernel), (x, kernel)),
  lambda geometry, saved, y: (_transpose(geometry, y, saved[1]), _kernel_gradient(geometry, saved[0], y)),
)
_transpose.defvjp(
  lambda geometry, y, kernel: (_transpose(geometry, y, kernel), (y, kernel)),
  lambda geometry, saved, x: (_convolve(geometry, x, saved[1]), _kernel_gradient(geometry, x, saved[0])),
)
_kernel_gradient.defvjp(
  lambda geometry, x, y: (_kernel_gradient(geometry, x, y), (x, y)),
  lambda geometry, saved, kernel: (_transpose(geometry, saved[1], kernel), _convolve(geometry, saved[0], kernel)),
)


def _kernel_gradient_by_window(geometry: _Geometry, x: jax.Array, y: jax.Array) -> jax.Array:
  kernel = jax.ShapeDtypeStruct((geometry.size, geometry.size, x.shape[-1], y.shape[-1]), x.dtype)
  return jax.linear_transpose(lambda kernel: _by_window(geometry, x, kernel), kernel)(y)[0]


def _kernel_gradient_by_product(geometry: _Geometry, x: jax.Array, y: jax.Array) -> jax.Array:
  """Sums over pixels as one matrix product: of x and y, the one with fewer channels is written size^2 times."""
  size, batch, inputs, outputs = geometry.size, x.shape[0], x.shape[-1], y.shape[-1]
  # Strides cannot be undone on y's side.
  shift_y = geometry.stride == 1 and outputs < inputs

  def product(x: jax.Array, y: jax.Array) -> jax.Array:
    if shift_y:
      y = _shifts(y, size, 1, size - 1 - geometry.pad, (geometry.height, geometry.width))[:, :, :, ::-1]
    else:
      x = _shifts(x, size, geometry.stride, geometry.pad, geometry.outputs())
    x, y = (t.reshape(math.prod(t.shape[:3]), -1) for t in (x, y))
    return lax.dot_general(x, y, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)

  height, width = (geometry.height, geometry.width) if shift_y else geometry.outputs()
  written = 4 * height * width * size * size * (outputs if shift_y else inputs)
  if batch == 1 or batch * written <= _CHUNK_BYTES:
    total = product(x, y)
  else:
    total = lax.map(lambda pair: product(pair[0][None], pair[1][None]), (x, y)).sum(0)
  if shift_y:
    total = total.reshape(inputs, size * size, outputs).swapaxes(0, 1)
  return total.reshape(size, size, inputs, outputs).astype(x.dtype)


def _shifts(x: jax.Array, size: int, stride: int, pad: int, outputs: tuple[int, int]) -> jax.Array:
  """[B, H, W, C] -> [B, *outputs, size^2, C]: what each window covers, the first beginning `pad` before x's pixels."""
  after = [stride * (out - 1) + size - pad - side for out, side in zip(outputs, x.shape[1:3], strict=True)]
  x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((pad, end, 0) for end in after), (0, 0, 0)])
  # Axis by axis: 2 size slices instead of size^2.
  for axis, out in ((2, outputs[1]), (1, outputs[0])):
    last = stride * (out - 1) + 1
    x = jnp.stack([lax.slice_in_dim(x, t, t + last, stride, axis) for t in range(size)], 3)
  return x.reshape(*x.shape[:3], size * size, x.shape[-1])


def convolve(x: jax.Array, kernel: jax.Array, *, stride: int = 1, pad: int = 0) -> jax.Array:
  """Cross-correlation as PyTorch has it: `pad` zeros on every side.

  [B, H, W, I], kernel [k, k, I, O] -> [B, h, w, O], h = floor((H + 2 pad - k) / stride) + 1.
  """
  return _convolve(_Geometry(kernel.shape[0], stride, pad, *x.shape[1:3]), x, kernel)


def convolve_transpose(y: jax.Array, kernel: jax.Array, *, stride: int, pad: int) -> jax.Array:
  """PyTorch's transposed convolution: out[stride i + t - pad] += y[i] kernel[t], what falls outside is dropped.

  [B, h, w, O], kernel [k, k, I, O] -> [B, H, W, I], H = stride (h - 1) + k - 2 pad.
  """
  size = kernel.shape[0]
  height, width = (stride * (side - 1) + size - 2 * pad for side in y.shape[1:3])
  return _transpose(_Geometry(size, stride, pad, height, width), y, kernel)
