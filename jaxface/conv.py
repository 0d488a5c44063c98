"""Convolutions and transposed convolutions with gradients that are fast on every platform.

A convolution, its transpose and its kernel gradient are the three gradients of one trilinear form

    form(x, kernel, y) = sum over b, i, o, p, t of  y[b, p, o] kernel[t, i, o] x[b, stride * p + t - pad, i]

(p runs over y's pixels, t over the kernel's taps, x is 0 outside), with respect to y, to x and to the kernel. Each of
the three is therefore differentiated by the other two, to any order (in reverse mode).

XLA runs the first two well nearly everywhere. On CPU it writes a kernel gradient as a convolution with a picture-sized
window, 3 to 30 times slower than the matrix products that only a program lowered for CPU contains; so it is with
convolutions of pictures of 2x2 pixels, whose roles it swaps, and with transposes by stride 2 of few outputs, which it
convolves with the zeros between (`jaxface.cpu_conv`). Convolutions of many channels and pixels it runs at the speed of
the hardware there; `jaxface.winograd` makes them fewer multiplications. On TPU few channels leave memory and matrix
units half empty (`jaxface.row_blocks`).
"""

# B batch | H,W pixels of x | h,w pixels of y | I channels of x | O channels of y

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxface import cpu_conv, plain_conv, row_blocks, winograd
from jaxface.meshes import TPU_LANES, rows_per_device
from jaxface.plain_conv import Geometry

# Pictures up to this size are convolved by a matrix product on CPU.
_TINY = 2
# Where `winograd` pays on CPU: for its matrix products the channels, for its tiles of four the pixels must be many.
_MANY_PIXELS = 16
_MANY_CHANNELS = {'convolve': 64, 'kernel_gradient': 32}
# Of fewer pixels in all it takes longer to transform the kernel, or its gradient, than is saved.
_WORTH_A_KERNEL = 512
# Up to so many outputs XLA on CPU is slow at transposed convolutions by stride 2.
_FEW_TRANSPOSED = 32


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(geometry: Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """d form / d y, [B, h, w, O]."""
  on_cpu = on_tpu = plain = functools.partial(plain_conv.convolve, geometry)
  if max(geometry.height, geometry.width) <= _TINY and geometry.size == 3:
    on_cpu = functools.partial(cpu_conv.convolve_by_product, geometry)
  elif _by_tiles(geometry, x, kernel.shape[2:], 'convolve'):
    on_cpu = lambda x, kernel: winograd.convolve(cpu_conv.pad_x(x, geometry), kernel)
  elif not geometry.padded():
    on_cpu = functools.partial(cpu_conv.convolve_with_spare_row, geometry)
  if row_blocks.pay(geometry, *kernel.shape[2:]):
    on_tpu = functools.partial(row_blocks.convolve, geometry)
  return _by_platform(x, kernel, cpu=on_cpu, tpu=on_tpu, default=plain)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _transpose(geometry: Geometry, y: jax.Array, kernel: jax.Array) -> jax.Array:
  """d form / d x, [B, H, W, I]."""
  flipped = kernel[::-1, ::-1].swapaxes(2, 3)
  if geometry.stride == 1:
    return _convolve(geometry.mirrored(), y, flipped)
  on_cpu = on_tpu = plain = functools.partial(plain_conv.transpose, geometry)
  few = kernel.shape[2] <= _FEW_TRANSPOSED or max(geometry.out_height, geometry.out_width) <= _TINY
  if few and geometry.stride == 2 and geometry.size == 3 and geometry.pad == 0:
    on_cpu = functools.partial(cpu_conv.transpose_by_phases, geometry)
  if row_blocks.pay(geometry, *kernel.shape[2:]):
    on_tpu = functools.partial(row_blocks.transpose, geometry)
  return _by_platform(y, flipped, cpu=on_cpu, tpu=on_tpu, default=plain)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _kernel_gradient(geometry: Geometry, x: jax.Array, y: jax.Array) -> jax.Array:
  """d form / d kernel, [size, size, I, O]."""
  on_tpu = plain = functools.partial(plain_conv.kernel_gradient, geometry)
  if _by_tiles(geometry, x, (x.shape[-1], y.shape[-1]), 'kernel_gradient'):
    on_cpu = lambda x, y: winograd.kernel_gradient(cpu_conv.pad_x(x, geometry), y)
  elif geometry.size != 3 and not geometry.padded():
    on_cpu = functools.partial(cpu_conv.kernel_gradient_with_spare_row, geometry)
  else:
    on_cpu = functools.partial(cpu_conv.kernel_gradient_by_products, geometry)
  if row_blocks.pay(geometry, x.shape[-1], y.shape[-1]):
    on_tpu = functools.partial(row_blocks.kernel_gradient, geometry)
  return _by_platform(x, y, cpu=on_cpu, tpu=on_tpu, default=plain)


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


def _by_platform(*arrays: jax.Array, default: Callable, **others: Callable) -> jax.Array:
  others = {platform: function for platform, function in others.items() if function is not default}
  return lax.platform_dependent(*arrays, **others, default=default) if others else default(*arrays)


def _by_tiles(geometry: Geometry, x: jax.Array, channels: tuple[int, ...], kind: str) -> bool:
  few = min(geometry.out_height, geometry.out_width) < _MANY_PIXELS or min(channels) < _MANY_CHANNELS[kind]
  few |= len(x) * geometry.out_height * geometry.out_width < _WORTH_A_KERNEL
  return not few and geometry.stride == 1 and geometry.size == 3 and x.dtype == jnp.float32


def conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Cross-correlation with zero padding: [B, H, W, I], kernel [3, 3, I, O] -> [B, H, W, O]."""
  return convolve(x, kernel, pad=1)


def convolve(
  x: jax.Array,
  kernel: jax.Array,
  *,
  stride: int = 1,
  pad: int = 0,
  precision: lax.PrecisionLike = None,
  blocks: bool = True,
) -> jax.Array:
  """Cross-correlation as PyTorch has it: `pad` zeros on every side.

  [B, H, W, I], kernel [k, k, I, O] -> [B, h, w, O], h = floor((H + 2 pad - k) / stride) + 1. `precision` is that of an
  accelerator's products. Without `blocks` a TPU takes no blocks of a row's pixels as one (`jaxface.row_blocks`), which
  cost more than they save where pools, sums and borders around take them apart again.
  """
  size = len(kernel)
  outputs = tuple((side + 2 * pad - size) // stride + 1 for side in x.shape[1:3])
  # Without the last rows and columns that no window reaches.
  height, width = (stride * (out - 1) + size - pad for out in outputs)
  x = x[:, :height, :width]
  geometry = Geometry(stride, pad, *x.shape[1:3], *outputs, size, precision, blocks and _few_rows(x))
  return _convolve(geometry, x, kernel)


def convolve_transpose(y: jax.Array, kernel: jax.Array, *, stride: int, pad: int) -> jax.Array:
  """PyTorch's transposed convolution: out[stride i + t - pad] += y[i] kernel[t], what falls outside is dropped.

  [B, h, w, O], kernel [k, k, I, O] -> [B, H, W, I], H = stride (h - 1) + k - 2 pad.
  """
  size = len(kernel)
  sides = (stride * (side - 1) + size - 2 * pad for side in y.shape[1:3])
  return _transpose(Geometry(stride, pad, *sides, *y.shape[1:3], size, blocks=_few_rows(y)), y, kernel)


def conv_transpose3x3(x: jax.Array, kernel: jax.Array, *, odd: bool) -> jax.Array:
  """Transposed convolution by stride 2, as Keras defines it: out[2i + k] += x[i] kernel[k] for k = 0, 1, 2.

  [B, H, W, I], kernel [3, 3, O, I] -> [B, 2H, 2W, O], cut at the end (Keras 'same'), or with `odd` all of
  [B, 2H+1, 2W+1, O] (Keras 'valid').
  """
  height, width = x.shape[1:3]
  geometry = Geometry(2, 0, 2 * height + odd, 2 * width + odd, height, width, blocks=_few_rows(x))
  return _transpose(geometry, x, kernel)


def _few_rows(x: jax.Array) -> bool:
  """Whether a device has few pictures of a batch: many a TPU puts side by side, where blocks would only move them."""
  return rows_per_device(len(x)) < TPU_LANES
