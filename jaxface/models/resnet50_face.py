"""ResNet-50 for faces, as VGGFace2's weights have it: it measures IPM-Net's perceptual loss, and who a face is.

He et al. 2016 in Caffe's layout, where a stride sits on a block's first 1x1 convolution, without classifier (Cao et al.
2018, VGGFace2). It is only ever used frozen, so each BatchNorm is part of its convolution's kernel and bias.
"""

# B batch | H,W pixels | h,w pixels of the last layer | I input channels | C channels

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxface.errors import UserError, check_floats
from jaxface.layers import Dtype
from jaxface.max_pool import hanging_over, max_pool3x3
from jaxface.models.resnet import convolve, he_fan_out
from jaxface.untrained import by_fan_out, untrained

# Channel means of blue, green and red in 0..255. IPM-Net's code takes ImageNet's, whatever weights it has.
MEANS = {'imagenet': (103.939, 116.779, 123.680), 'vggface2': (91.4953, 103.8827, 131.0912)}

POOLS = ('window', 'global')

# Below this side the last layer has no window of 7x7 pixels.
SMALLEST = 195
_WINDOW = 7
_EXPANSION = 4


def preprocess(image: jax.Array, means: str = 'imagenet') -> jax.Array:
  """RGB [B, H, W, 3] in [-1, 1] -> BGR in 0..255 less the channel means of `MEANS[means]`, float32."""
  if means not in MEANS:
    raise UserError(f'unknown means {means!r}; choose from {", ".join(MEANS)}')
  check_floats(image, 'the network of faces')
  bgr = (image.astype(jnp.float32)[..., ::-1] + 1) * 127.5
  return bgr - jnp.array(MEANS[means], jnp.float32)[None, None, None]


class FaceResNet50(nn.Module):
  """Pictures -> features of the last layer, pooled.

  Attributes:
    widths: channels inside the blocks of each layer; a block puts out four times as many.
    blocks: blocks of each layer.
    means: what is taken off the pictures, a name of `MEANS`.
    pool: 'window' as the public code pools, averages of 7x7 pixels at every place; 'global' the mean over all places,
      for pictures of any size.
    precision: of the convolutions, as `jax.lax.Precision`; None is the backend's default.
    dtype: of the convolutions; sums and pooling are float32.
  """

  widths: tuple[int, int, int, int] = (64, 128, 256, 512)
  blocks: tuple[int, int, int, int] = (3, 4, 6, 3)
  means: str = 'imagenet'
  pool: str = 'window'
  precision: jax.lax.PrecisionLike = None
  dtype: Dtype = jnp.float32

  def __call__(self, image: jax.Array) -> jax.Array:
    """RGB floats [B, H, W, 3] in [-1, 1], at the size at hand: nothing is resized -> float32 [B, N].

    With pool 'global' N is 2,048. With 'window' it is 2,048 times the number of places, ordered by channel, then row,
    then column: 2,048 for sides of 195 to 226 pixels, 8,192 for 256. UserError for smaller pictures.
    """
    if self.pool not in POOLS:
      raise UserError(f'unknown pool {self.pool!r}; choose from {", ".join(POOLS)}')
    if self.pool == 'window' and min(image.shape[1:3]) < SMALLEST:
      height, width = image.shape[1:3]
      raise UserError(f'pictures of {width}x{height}: a 7x7 pool needs sides of {SMALLEST}; pool="global" needs none')
    last_BhwC = self.layers(image)[-1].astype(jnp.float32)
    if self.pool == 'global':
      return last_BhwC.mean((1, 2))
    pooled_BhwC = nn.avg_pool(last_BhwC, (_WINDOW, _WINDOW))
    return pooled_BhwC.transpose(0, 3, 1, 2).reshape(len(image), -1)

  @nn.compact
  def layers(self, image: jax.Array) -> tuple[jax.Array, ...]:
    """What the stem and the four layers put out, in `dtype`: at a quarter, a quarter, an eighth ... of the size."""
    x = preprocess(image, self.means).astype(self.dtype)
    x = nn.relu(self._conv('conv1', self.widths[0], 7, x, stride=2))
    x = max_pool3x3(x, hanging_over(x))
    found = [x]
    for layer, (width, blocks) in enumerate(zip(self.widths, self.blocks, strict=True), start=1):
      for block in range(blocks):
        x = self._block(f'layer{layer}_{block}', width, x, stride=2 if layer > 1 and block == 0 else 1)
      found.append(x)
    return tuple(found)

  def _block(self, name, width, x, *, stride):
    y = nn.relu(self._conv(f'{name}_conv1', width, 1, x, stride=stride))
    y = nn.relu(self._conv(f'{name}_conv2', width, 3, y))
    y = self._conv(f'{name}_conv3', _EXPANSION * width, 1, y)
    if name.endswith('_0'):
      x = self._conv(f'{name}_downsample', _EXPANSION * width, 1, x, stride=stride)
    return nn.relu(x + y)

  def _conv(self, name, features, size, x, *, stride=1):
    return _Conv(features, size, stride, self.precision, self.dtype, name=name)(x)


class _Conv(nn.Module):
  """`convolve` and a bias: parameters `kernel` [size, size, I, features] and `bias` [features], float32."""

  features: int
  size: int
  stride: int
  precision: jax.lax.PrecisionLike
  dtype: Dtype

  @nn.compact
  def __call__(self, x_BHWI):
    kernel = self.param('kernel', he_fan_out, (self.size, self.size, x_BHWI.shape[-1], self.features), jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, (self.features,), jnp.float32)
    y_BHWC = convolve(x_BHWI, kernel.astype(self.dtype), self.stride, self.precision)
    return y_BHWC + bias.astype(self.dtype)[None, None, None]


def random_variables(seed: int, module: FaceResNet50 | None = None) -> dict[str, Any]:
  """Variables (numpy, float32) of the untrained network, against which the public IPM-Net code trains in effect.

  Kernels are He's normal by fan-out, biases 0.
  """
  picture = jax.ShapeDtypeStruct((1, SMALLEST, SMALLEST, 3), np.float32)
  shapes = jax.eval_shape((module or FaceResNet50()).init, jax.random.key(0), picture)
  return untrained(shapes, by_fan_out, seed)
