"""Layers with the semantics of the public checkpoints: Keras's convolutions, transposed convolutions and BatchNorm."""

# B batch | H,W pixels | I input channels | O output channels | C channels

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from jaxface import conv

Dtype = jnp.dtype | type


class Conv3x3(nn.Module):
  """3x3 convolution with zero padding and bias.

  Parameters `kernel` [3, 3, I, O] (Glorot uniform) and `bias` [O] (zeros) are float32; the work is done in `dtype`.
  """

  features: int
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x_BHWI: jax.Array) -> jax.Array:
    """[B, H, W, I] -> [B, H, W, features] in `dtype`."""
    shape = (3, 3, x_BHWI.shape[-1], self.features)
    kernel = self.param('kernel', nn.initializers.glorot_uniform(), shape, jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, (self.features,), jnp.float32)
    y_BHWO = conv.conv3x3(x_BHWI.astype(self.dtype), kernel.astype(self.dtype))
    return y_BHWO + bias.astype(self.dtype)[None, None, None]


class ConvTranspose3x3(nn.Module):
  """3x3 transposed convolution by stride 2 with Keras's semantics, see `conv.conv_transpose3x3`.

  Parameters `kernel` [3, 3, O, I], not flipped (Glorot uniform), and `bias` [O] (zeros) are float32; the work is done
  in `dtype`. `odd` is Keras's padding 'valid', otherwise 'same'.
  """

  features: int
  odd: bool = False
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x_BHWI: jax.Array) -> jax.Array:
    """[B, H, W, I] -> [B, 2H, 2W, features] in `dtype`, or [B, 2H+1, 2W+1, features] with `odd`."""
    shape = (3, 3, self.features, x_BHWI.shape[-1])
    kernel = self.param('kernel', nn.initializers.glorot_uniform(in_axis=-1, out_axis=-2), shape, jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, (self.features,), jnp.float32)
    y_BHWO = conv.conv_transpose3x3(x_BHWI.astype(self.dtype), kernel.astype(self.dtype), odd=self.odd)
    return y_BHWO + bias.astype(self.dtype)[None, None, None]


class BatchNorm(nn.Module):
  """Batch normalisation over all axes but the last; by default with Keras's constants and its unbiased moving variance.

  Training normalises with the batch's mean and biased variance and moves `batch_stats` towards the batch's mean and
  variance by (1 - momentum); evaluation normalises with `batch_stats`. Statistics are float32 whatever `dtype` is.

  Attributes:
    momentum: share of the old value that a moving statistic keeps (PyTorch's momentum is one minus this).
    epsilon: added to the variance.
    biased_moving_variance: Flax's choice; Keras and PyTorch multiply by n / (n - 1), n the values per channel.
    axis_name: `pmap` or `shard_map` axis over which the statistics are taken; under `jit` the batch is global as it is.
    dtype: of the result.
  """

  momentum: float = 0.99
  epsilon: float = 1e-3
  biased_moving_variance: bool = False
  axis_name: str | None = None
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """[..., C] -> [..., C] in `dtype`; with `train` the collection 'batch_stats' must be mutable."""
    wide = (1,) * (x.ndim - 1) + x.shape[-1:]
    scale = self.param('scale', nn.initializers.ones, x.shape[-1:], jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, x.shape[-1:], jnp.float32)
    moving_mean = self.variable('batch_stats', 'mean', jnp.zeros, x.shape[-1:], jnp.float32)
    moving_var = self.variable('batch_stats', 'var', jnp.ones, x.shape[-1:], jnp.float32)
    x = x.astype(jnp.float32)
    if train:
      mean, var, count = self._moments(x)
      if not self.is_initializing():
        # One value per channel has no unbiased variance.
        spread = var if self.biased_moving_variance else var * (count / max(count - 1, 1))
        for moving, batch in ((moving_mean, mean), (moving_var, spread)):
          moving.value = self.momentum * moving.value + (1 - self.momentum) * lax.stop_gradient(batch.reshape(-1))
    else:
      mean, var = moving_mean.value.reshape(wide), moving_var.value.reshape(wide)
    factor = scale.reshape(wide) * lax.rsqrt(var + self.epsilon)
    return ((x - mean) * factor + bias.reshape(wide)).astype(self.dtype)

  def _moments(self, x: jax.Array) -> tuple[jax.Array, jax.Array, int]:
    """Mean and biased variance per channel, [1, ..., 1, C], and how many values they are of."""
    replicas = None if self.is_initializing() else self.axis_name
    count = x.size // x.shape[-1] * (1 if replicas is None else lax.axis_size(replicas))

    def average(values):
      local = values.mean(range(x.ndim - 1), keepdims=True)
      return local if replicas is None else lax.pmean(local, replicas)

    mean = average(x)
    # Two passes: E[x^2] - E[x]^2 loses the variance of a channel that hardly varies.
    return mean, average(jnp.square(x - mean)), count
