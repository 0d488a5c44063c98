"""SCA-DM's multi-scale style encoder: a picture and its label map to one style token per class (Ergasti et al. 2024).

"Controllable Face Synthesis with Semantic Latent Diffusion Models", arXiv 2403.12743. Every class has channels of its
own, by grouped convolutions, down to the coarsest scale and one step up again. The finer decoder layers mix classes:
their input is the decoder's channels followed by the encoder's, not both of one class side by side, and is grouped as
it stands. Published checkpoints were trained so.
"""

# B batch | H,W pixels | h,w pixels out | K classes | G groups | I,O channels in and out, of a group where G stands by
# C channels of all classes | D token channels

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from jaxface import resize
from jaxface.errors import UserError
from jaxface.layers import Dtype, spread
from jaxface.meshes import TPU_LANES, on_own_rows, whole
from jaxface.models.unet_layers import Conv, GroupNorm, torch_bias_init, torch_init
from jaxface.plain_conv import LAYOUT


def grouped_conv3x3(x: jax.Array, kernel: jax.Array, groups: int, stride: int) -> jax.Array:
  """Cross-correlation of every group of channels by its own kernel, with one zero on every side.

  [B, H, W, G I], kernel [3, 3, I, G O], G = `groups` -> [B, h, w, G O] in x's dtype, h = ceil(H / stride).
  """
  inputs, outputs = kernel.shape[2], kernel.shape[3] // groups
  together = groups if groups * inputs <= TPU_LANES else max(1, TPU_LANES // max(inputs, outputs))
  on_tpu = lambda x, kernel: _by_convolution(x, kernel, groups, stride, together)
  on_gpu = lambda x, kernel: _by_convolution(x, kernel, groups, stride, together=1)
  by_products = lambda x, kernel: _by_products(x, kernel, groups, stride)
  return lax.platform_dependent(x, kernel, tpu=on_tpu, cuda=on_gpu, default=by_products)


def _by_convolution(x: jax.Array, kernel: jax.Array, groups: int, stride: int, together: int) -> jax.Array:
  """XLA's grouped convolution, with `together` groups as one, whose kernel has zeros for each other's channels.

  A tenth of the products' memory traffic on a GPU, whose library knows groups, and a third on a TPU, which is fast at
  groups as wide as its matrix units.
  """
  inputs, outputs = kernel.shape[2], kernel.shape[3] // groups
  wide_groups = -(-groups // together)
  missing = wide_groups * together - groups

  def convolve(x, kernel):
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, missing * inputs)))
    kernel = jnp.pad(kernel, ((0, 0), (0, 0), (0, 0), (0, missing * outputs)))
    # In float32, as its gradient is summed, of which all but one term are zeros.
    kernel = kernel.astype(jnp.float32).reshape(3, 3, 1, inputs, wide_groups, together, outputs)
    own = jnp.eye(together, dtype=jnp.float32).reshape(1, 1, together, 1, 1, together, 1)
    y = lax.conv_general_dilated(
      x,
      (kernel * own).reshape(3, 3, together * inputs, -1).astype(x.dtype),
      (stride, stride),
      ((1, 1), (1, 1)),
      dimension_numbers=LAYOUT,
      feature_group_count=wide_groups,
    )
    return y[..., : groups * outputs]

  # Left to itself XLA gathers a batch that is spread over devices.
  return on_own_rows(convolve, (x,), (kernel,))


@functools.partial(jax.checkpoint, static_argnums=(2, 3))
def _by_products(x: jax.Array, kernel: jax.Array, groups: int, stride: int) -> jax.Array:
  """A matrix product a group and kernel row.

  XLA's grouped convolution takes 30 to 100 times as long for its gradients on a CPU. What has fewer channels is written
  three times: with stride 1 y, else x. (Where the stride is 1, a decoder's y has a half or a quarter of x's channels;
  strides cannot be undone on y's side.) The copies are made again for the gradients: kept, they would be three to nine
  times x.
  """
  batch, height, width, _ = x.shape
  h, w = -(-height // stride), -(-width // stride)
  kernel = kernel.reshape(3, 3, kernel.shape[2], groups, -1)
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  total = 0
  if stride == 1:
    x_GNI = x.reshape(-1, groups, kernel.shape[2]).swapaxes(0, 1)
    for row in range(3):
      y = product('gni,tigo->gnto', x_GNI, kernel[row]).reshape(groups, batch, h, w, 3, -1)
      y = jnp.pad(y, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0), (0, 0)))
      total += sum(y[:, :, row : row + h, column : column + w, column] for column in range(3))
    return total.transpose(1, 2, 3, 0, 4).reshape(batch, h, w, -1).astype(x.dtype)
  x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  for row in range(3):
    rows = x[:, row : row + stride * (h - 1) + 1 : stride]
    taps = jnp.stack([rows[:, :, t : t + stride * (w - 1) + 1 : stride] for t in range(3)], 3)
    total += product('ntgi,tigo->gno', taps.reshape(batch * h * w, 3, groups, -1), kernel[row])
  return total.swapaxes(0, 1).reshape(batch, h, w, -1).astype(x.dtype)


class GroupedConv(nn.Module):
  """3x3 convolution of every group by its own kernel, with zero padding and bias; see `grouped_conv3x3`.

  Parameters `kernel` [3, 3, I, features] and `bias` [features] are float32, both initially uniform within
  +-1 / sqrt(9 I) as PyTorch draws them; the work is done in `dtype`.
  """

  features: int
  groups: int
  stride: int = 1
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x_BHWC: jax.Array) -> jax.Array:
    """[B, H, W, G I] -> [B, h, w, features] in `dtype`."""
    inputs = x_BHWC.shape[-1] // self.groups
    kernel = self.param('kernel', torch_init, (3, 3, inputs, self.features), jnp.float32)
    bias = self.param('bias', torch_bias_init(9 * inputs), (self.features,), jnp.float32)
    y = grouped_conv3x3(x_BHWC.astype(self.dtype), whole(kernel.astype(self.dtype)), self.groups, self.stride)
    return y + spread(bias, y)


class Layer(nn.Module):
  """Convolution, every class normalised by itself, ReLU; with `mixing` every class sees all channels."""

  features: int
  num_classes: int
  stride: int = 1
  mixing: bool = False
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x_BHWC: jax.Array) -> jax.Array:
    """[B, H, W, I] -> [B, h, w, features] in `dtype`."""
    if self.mixing:
      conv = Conv(self.features, stride=self.stride, dtype=self.dtype, name='conv')
    else:
      conv = GroupedConv(self.features, self.num_classes, self.stride, self.dtype, name='conv')
    return nn.relu(GroupNorm(self.num_classes, dtype=self.dtype, name='norm')(conv(x_BHWC)))


class Tokens(nn.Module):
  """Features of one scale to tokens: their mean over each class's pixels, a linear layer a class, tanh.

  Parameters `kernel` [I, K D] and `bias` [K D], both initially uniform within +-1 / sqrt(I) as PyTorch draws them. A
  class without pixels has the tanh of its bias.
  """

  token_dim: int

  @nn.compact
  def __call__(self, x_BhwC: jax.Array, mask_BhwK: jax.Array) -> jax.Array:
    """Features [B, h, w, K I] and one-hot classes [B, h, w, K], float32 -> [B, K, token_dim], float32."""
    batch, height, width, classes = mask_BhwK.shape
    x_BPKI = x_BhwC.reshape(batch, height * width, classes, -1)
    mask_BPK = mask_BhwK.reshape(batch, height * width, classes)
    # Means and tokens are few; in an accelerator's default precision they would be the coarsest numbers of all.
    product = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
    mean_BKI = product('bpki,bpk->bki', x_BPKI, mask_BPK.astype(x_BPKI.dtype)) / (mask_BPK.sum(1) + 1e-5)[:, :, None]
    inputs = x_BPKI.shape[-1]
    kernel = self.param('kernel', torch_init, (inputs, classes * self.token_dim), jnp.float32)
    bias = self.param('bias', torch_bias_init(inputs), (classes * self.token_dim,), jnp.float32)
    y_BKD = product('bki,ikd->bkd', mean_BKI, kernel.reshape(-1, classes, self.token_dim))
    return jnp.tanh(y_BKD + bias.reshape(1, classes, self.token_dim))


class StyleEncoder(nn.Module):
  """Style tokens of every class, one part for each scale of the decoder, coarse to fine.

  The published one is for 256 pixels: 18.07 M parameters, tokens of 5 * 256 channels. For 32 or 64 pixels 4 halvings
  are enough: tokens of 3 * 256.

  Attributes:
    num_classes: K.
    width: channels of a class in full resolution; every halving doubles them.
    token_dim: channels of a token for each scale.
    num_downsamples: halvings, at least 2; enlargements, and scales of the tokens, are one fewer.
    dtype: of the work; statistics, means and tokens are float32.
  """

  num_classes: int = 19
  width: int = 4
  token_dim: int = 256
  num_downsamples: int = 6
  dtype: Dtype = jnp.float32

  def __post_init__(self):
    """Says what is wrong with the attributes while the caller is still on the stack."""
    for name, least in (('num_classes', 1), ('width', 1), ('token_dim', 1), ('num_downsamples', 2)):
      if getattr(self, name) < least:
        raise UserError(f'{name}={getattr(self, name)} of the style encoder must be at least {least}')
    super().__post_init__()

  @property
  def num_tokens_channels(self) -> int:
    """Length of a token: that of all scales."""
    return (self.num_downsamples - 1) * self.token_dim

  @nn.compact
  def __call__(self, image_BHW3: jax.Array, label_BHW: jax.Array) -> jax.Array:
    """Tokens of a batch of pictures.

    Args:
      image_BHW3: RGB in [-1, 1], float; sides are multiples of 2 ** num_downsamples. All zeros for a discarded style:
        the label map still tells.
      label_BHW: classes 0..K-1, int; K is no class at all.

    Returns:
      float32 [B, K, num_tokens_channels] within (-1, 1). A class that a scale has no pixel of (it takes the nearest,
      so small parts may vanish) has there what the tanh of its bias is.

    Raises:
      UserError: a side that is not halved so often, or a label map of another size.
    """
    self._check(image_BHW3.shape, label_BHW.shape)
    layer = functools.partial(Layer, num_classes=self.num_classes, dtype=self.dtype)
    channels = self.num_classes * self.width
    x = layer(channels, mixing=True, name='stem')(image_BHW3.astype(self.dtype))
    encoded = []
    for i in range(self.num_downsamples):
      x = layer(channels << i + 1, stride=2, name=f'down{i}')(x)
      encoded.append(x)
    encoded.pop()
    tokens = []
    for i in range(self.num_downsamples - 1):
      x = resize.bilinear(x, (2 * x.shape[1], 2 * x.shape[2]), align_corners=False)
      skip = encoded.pop()
      x = layer(skip.shape[-1], name=f'up{i}')(x)
      mask = jax.nn.one_hot(resize.nearest(label_BHW, x.shape[1:3]), self.num_classes)
      tokens.append(Tokens(self.token_dim, name=f'tokens{i}')(x, mask))
      x = jnp.concatenate([x, skip], -1)
    return jnp.concatenate(tokens, -1)

  def _check(self, image: tuple[int, ...], label: tuple[int, ...]) -> None:
    multiple = 2**self.num_downsamples
    for side in image[1:3]:
      if side % multiple or side == 0:
        low = side // multiple * multiple
        nearest = ' or '.join(str(size) for size in (low, low + multiple) if size)
        raise UserError(
          f'the style encoder cannot halve a picture of {image[1]}x{image[2]} pixels {self.num_downsamples} times: '
          f'sides must be multiples of {multiple}; resize {side} to {nearest}'
        )
    if label != image[:3]:
      raise UserError(f'label maps {list(label)} do not fit pictures {list(image)}; they must be {list(image[:3])}')
