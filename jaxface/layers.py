"""Layers with the semantics of the public checkpoints: Keras's convolutions, transposed convolutions and BatchNorm."""

# B batch | H,W pixels | I input channels | O output channels | C channels

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from jaxface import conv
from jaxface.meshes import gather_from_own_rows
from jaxface.moments import variance

Dtype = jnp.dtype | type


def spread(small: jax.Array, like: jax.Array) -> jax.Array:
  """A bias, gate or other small array in the shape and type of features, `like`; its gradient is summed in float32.

  Rounded to bfloat16 before it is spread, it would have it summed in bfloat16, where sums soon stand still.
  """
  return jnp.broadcast_to(small.astype(jnp.float32), like.shape).astype(like.dtype)


class SameConv(nn.Module):
  """Convolution with zero padding and bias that keeps the size.

  Parameters `kernel` [size, size, I, features] and `bias` [features] (zeros) are float32; the work is done in `dtype`.
  `size` is odd; `precision` is that of an accelerator's products.
  """

  features: int
  size: int
  kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
  precision: lax.PrecisionLike = None
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x_BHWI: jax.Array) -> jax.Array:
    """[B, H, W, I] -> [B, H, W, features] in `dtype`."""
    shape = (self.size, self.size, x_BHWI.shape[-1], self.features)
    kernel = self.param('kernel', self.kernel_init, shape, jnp.float32).astype(self.dtype)
    bias = self.param('bias', nn.initializers.zeros, (self.features,), jnp.float32)
    y_BHWO = conv.convolve(x_BHWI.astype(self.dtype), kernel, pad=self.size // 2, precision=self.precision)
    return y_BHWO + spread(bias, y_BHWO)


class Conv3x3(nn.Module):
  """3x3 convolution with zero padding and bias.

  Parameters `kernel` [3, 3, I, O] (Glorot uniform) and `bias` [O] (zeros) are float32; the work is done in `dtype`.
  """

  features: int
  dtype: Dtype = jnp.float32

  def __call__(self, x_BHWI: jax.Array) -> jax.Array:
    """[B, H, W, I] -> [B, H, W, features] in `dtype`."""
    y_BHWO, bias_O = self.parts(x_BHWI)
    return y_BHWO + spread(bias_O, y_BHWO)

  @nn.compact
  def parts(self, x_BHWI: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The result before the bias, and the bias (float32), for a layer such as `BatchNormElu` that can do without it."""
    shape = (3, 3, x_BHWI.shape[-1], self.features)
    kernel = self.param('kernel', nn.initializers.glorot_uniform(), shape, jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, (self.features,), jnp.float32)
    return conv.conv3x3(x_BHWI.astype(self.dtype), kernel.astype(self.dtype)), bias


class ConvTranspose3x3(nn.Module):
  """3x3 transposed convolution by stride 2 with Keras's semantics, see `conv.conv_transpose3x3`.

  Parameters `kernel` [3, 3, O, I], not flipped (Glorot uniform), and `bias` [O] (zeros) are float32; the work is done
  in `dtype`. `odd` is Keras's padding 'valid', otherwise 'same'.
  """

  features: int
  odd: bool = False
  dtype: Dtype = jnp.float32

  def __call__(self, x_BHWI: jax.Array) -> jax.Array:
    """[B, H, W, I] -> [B, 2H, 2W, features] in `dtype`, or [B, 2H+1, 2W+1, features] with `odd`."""
    y_BHWO, bias_O = self.parts(x_BHWI)
    return y_BHWO + spread(bias_O, y_BHWO)

  @nn.compact
  def parts(self, x_BHWI: jax.Array) -> tuple[jax.Array, jax.Array]:
    """As `Conv3x3.parts`."""
    shape = (3, 3, self.features, x_BHWI.shape[-1])
    kernel = self.param('kernel', nn.initializers.glorot_uniform(in_axis=-1, out_axis=-2), shape, jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, (self.features,), jnp.float32)
    return conv.conv_transpose3x3(x_BHWI.astype(self.dtype), kernel.astype(self.dtype), odd=self.odd), bias


def _wide(vector: jax.Array, like: jax.Array) -> jax.Array:
  return vector.reshape((1,) * (like.ndim - 1) + (-1,))


def _moments(x: jax.Array, axis_name: str | None) -> tuple[jax.Array, jax.Array]:
  """Mean and biased variance of every channel over the whole batch, float32 [C]; devices exchange both at once."""
  if axis_name is None:
    found = gather_from_own_rows(_moments_of_part, x)
  else:
    found = lax.all_gather(_moments_of_part(x), axis_name, tiled=True)
  means, variances = found[:, 0], found[:, 1]
  mean = means.mean(0)
  return mean, (variances + jnp.square(means - mean[None])).mean(0)


def _moments_of_part(x: jax.Array) -> jax.Array:
  """Mean and biased variance of every channel over the rows of one device, float32 [1, 2, C]."""
  over_pixels = lambda values: values.mean(tuple(range(x.ndim - 1)), keepdims=True)
  mean = over_pixels(x.astype(jnp.float32))
  return jnp.stack([mean.ravel(), variance(x, mean, over_pixels).ravel()])[None]


class BatchNorm(nn.Module):
  """Batch normalisation over all axes but the last; by default with Keras's constants and its unbiased moving variance.

  Training normalises with the batch's mean and biased variance and moves `batch_stats` towards the batch's mean and
  variance by (1 - momentum); evaluation normalises with `batch_stats`. Statistics are float32 whatever `dtype` is.

  Attributes:
    momentum: share of the old value that a moving statistic keeps (PyTorch's momentum is one minus this).
    epsilon: added to the variance.
    biased_moving_variance: Flax's choice; Keras and PyTorch multiply by n / (n - 1), n the values per channel.
    scale_init: of the scales.
    axis_name: `pmap` or `shard_map` axis over which the statistics are taken; under `jit` the batch is global as it is.
    dtype: of the result.
  """

  momentum: float = 0.99
  epsilon: float = 1e-3
  biased_moving_variance: bool = False
  scale_init: nn.initializers.Initializer = nn.initializers.ones
  axis_name: str | None = None
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool, shift: jax.Array | None = None) -> jax.Array:
    """[..., C] -> [..., C] in `dtype`; with `train` the collection 'batch_stats' must be mutable.

    `shift` [C], such as a convolution's bias, counts as added to x. In training it cancels: it only moves the moving
    mean, costs nothing and has no gradient.
    """
    channels = x.shape[-1:]
    shift = jnp.zeros(channels, jnp.float32) if shift is None else shift
    scale = self.param('scale', self.scale_init, channels, jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, channels, jnp.float32)
    moving_mean = self.variable('batch_stats', 'mean', jnp.zeros, channels, jnp.float32)
    moving_var = self.variable('batch_stats', 'var', jnp.ones, channels, jnp.float32)
    if not train:
      return self._normalise(x, moving_mean.value - shift, moving_var.value, scale, bias)

    axis_name = None if self.is_initializing() else self.axis_name
    y, mean, var = self._normalise_batch(x, scale, bias, axis_name)
    if not self.is_initializing():
      count = x.size // x.shape[-1] * (1 if axis_name is None else lax.axis_size(axis_name))
      # One value per channel has no unbiased variance.
      spread = var if self.biased_moving_variance else var * (count / max(count - 1, 1))
      for moving, batch in ((moving_mean, mean + shift), (moving_var, spread)):
        moving.value = self.momentum * moving.value + (1 - self.momentum) * lax.stop_gradient(batch)
    return y

  def _normalise(self, x, mean, var, scale, bias) -> jax.Array:
    factor = scale * lax.rsqrt(var + self.epsilon)
    return ((x.astype(jnp.float32) - _wide(mean, x)) * _wide(factor, x) + _wide(bias, x)).astype(self.dtype)

  def _normalise_batch(self, x, scale, bias, axis_name) -> tuple[jax.Array, jax.Array, jax.Array]:
    mean, var = _moments(x, axis_name)
    return self._normalise(x, mean, var, scale, bias), mean, var


class BatchNormElu(BatchNorm):
  """`BatchNorm` and then ELU. The backward pass recomputes all but x: less memory, and much less memory traffic."""

  def _normalise(self, x, mean, var, scale, bias) -> jax.Array:
    return elu(super()._normalise(x, mean, var, scale, bias))

  def _normalise_batch(self, x, scale, bias, axis_name) -> tuple[jax.Array, jax.Array, jax.Array]:
    y, mean, var = _norm_elu((self.epsilon, axis_name), x, scale, bias)
    return y.astype(self.dtype), mean, var


def elu(x: jax.Array) -> jax.Array:
  """x above 0, exp(x) - 1 below, to rounding; any shape and float dtype.

  Written with one tanh, exp(x) - 1 = 2t / (1 - t) for t = tanh(x / 2): XLA's `expm1` takes a tanh and an exp.
  """
  t = jnp.tanh(jnp.minimum(x, 0) / 2)
  return jnp.where(x > 0, x, 2 * t / (1 - t))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _norm_elu(options: tuple[float, str | None], x: jax.Array, scale: jax.Array, bias: jax.Array):
  """ELU of the normalised batch in float32, and the statistics, which are not to be differentiated."""
  return _norm_elu_forward(options, x, scale, bias)[0]


def _norm_elu_forward(options, x, scale, bias):
  epsilon, axis_name = options
  mean, var = _moments(x, axis_name)
  scaled = (x.astype(jnp.float32) - _wide(mean, x)) * _wide(scale * lax.rsqrt(var + epsilon), x) + _wide(bias, x)
  return (elu(scaled), mean, var), (x, scale, bias, mean, var)


def _norm_elu_backward(options, saved, gradients):
  epsilon, axis_name = options
  x, scale, bias, mean, var = saved
  inverse = lax.rsqrt(var + epsilon)
  values = x.astype(jnp.float32)
  scaled = (values - _wide(mean, x)) * _wide(scale * inverse, x) + _wide(bias, x)
  # ELU's slope is 1 above 0 and exp below.
  dscaled = gradients[0].astype(jnp.float32) * jnp.exp(jnp.minimum(scaled, 0))
  local = tuple(range(x.ndim - 1))
  dbias = dscaled.sum(local)
  # sum(dscaled * (x - mean)) without writing x - mean.
  dscale = ((dscaled * values).sum(local) - mean * dbias) * inverse
  count = x.size // x.shape[-1]
  offset, slope = dbias / count, dscale / count
  if axis_name is not None:
    offset, slope = lax.pmean((offset, slope), axis_name)
  normalised = (values - _wide(mean, x)) * _wide(inverse, x)
  dx = _wide(scale * inverse, x) * (dscaled - _wide(offset, x) - normalised * _wide(slope, x))
  return dx.astype(x.dtype), dscale, dbias


_norm_elu.defvjp(_norm_elu_forward, _norm_elu_backward)
