"""IPM-Net: makeup transfer by a style code of the face and a content code of all but the face (Huang et al. 2020).

"Real-World Automatic Makeup via Identity Preservation Makeup Net", IJCAI 2020. Where its public code
(huangzhikun1995/IPM-Net) differs from the paper, this is the code. Pictures are RGB in [-1, 1].
"""

# B batch | H,W pixels | h,w content grid, H/4 and W/4 | C channels | I input channels | O output channels

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from jaxface.conv import convolve
from jaxface.errors import UserError, check_at_least, check_floats
from jaxface.layers import Dtype, SameConv, spread
from jaxface.models.group_norm import group_norm

# Halvings in the style encoder, of which the first two double the channels.
_STYLE_DOWNSAMPLES = 4

he_fan_in = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')


def pass_through(key: jax.Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> jax.Array:
  """The kernel [size, size, C, C], `size` odd, of the convolution that changes nothing."""
  del key
  middle = shape[0] // 2
  return jnp.zeros(shape, dtype).at[middle, middle].set(jnp.eye(shape[2], dtype=dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def mirror(x_BHWC: jax.Array, pixels: int, mode: str = 'reflect') -> jax.Array:
  """Mirrors so many pixels over every border: [B, H, W, C] -> [B, H + 2p, W + 2p, C].

  The outermost is not repeated in mode 'reflect', and is in mode 'symmetric', as NumPy has them.
  """
  return jnp.pad(x_BHWC, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)), mode=mode)


def _fold_back(pixels: int, mode: str, _: None, y: jax.Array) -> tuple[jax.Array]:
  """The gradient of `mirror`: what lies outside is added to where it was mirrored from.

  In one expression, which XLA works out at once; differentiating the padding it would go through y for every border.
  """
  first = int(mode == 'reflect')
  for axis in (1, 2):
    size = y.shape[axis] - 2 * pixels
    cut = functools.partial(lax.slice_in_dim, y, axis=axis)
    place = functools.partial(_place, axis=axis, size=size)
    before, behind = place(cut(0, pixels), first), place(cut(pixels + size, None), size - first - pixels)
    y = cut(pixels, pixels + size) + before + behind
  return (y,)


mirror.defvjp(lambda x_BHWC, pixels, mode: (mirror(x_BHWC, pixels, mode), None), _fold_back)


def _place(end: jax.Array, start: int, *, axis: int, size: int) -> jax.Array:
  """Turned round along an axis and put within zeros."""
  sides = (start, size - start - end.shape[axis])
  return jnp.pad(lax.rev(end, (axis,)), [sides if i == axis else (0, 0) for i in range(end.ndim)])


def instance_norm(x_BHWC: jax.Array, affine_B2C: jax.Array | None = None) -> jax.Array:
  """Every channel of every picture to mean 0 and variance 1 (epsilon 1e-5, biased), in x's dtype.

  With `affine_B2C` (shift, then scale; float32) then times scale plus shift: adaptive instance normalisation, Huang &
  Belongie 2017. Statistics are float32.
  """
  channels = x_BHWC.shape[-1]
  if affine_B2C is None:
    shift, scale = jnp.zeros((1, 1, 1, channels)), jnp.ones((1, 1, 1, channels))
  else:
    shift, scale = affine_B2C[:, 0, None, None], affine_B2C[:, 1, None, None]
  return group_norm(x_BHWC, scale, shift, groups=channels, dtype=x_BHWC.dtype)


class Conv(nn.Module):
  """Convolution of the picture mirrored over its borders by `pad` pixels, with bias.

  Parameters `kernel` [size, size, I, features] (He normal, fan in) and `bias` [features] (zeros) are float32; the
  work is done in `dtype`. With `normalised` the bias is left out of the work, since an instance norm that follows
  takes any constant away; it is a parameter still, as checkpoints have it, and its gradient is 0. With `blocks` a TPU
  may take pixels as one (`jaxface.row_blocks`), which pays less where mirrored borders take them apart.
  """

  features: int
  size: int
  stride: int = 1
  pad: int = 1
  normalised: bool = False
  dtype: Dtype = jnp.float32
  blocks: bool = False

  @nn.compact
  def __call__(self, x_BHWI: jax.Array) -> jax.Array:
    """[B, H, W, I] -> [B, H / stride, W / stride, features], rounded down, in `dtype`."""
    shape = (self.size, self.size, x_BHWI.shape[-1], self.features)
    kernel = self.param('kernel', he_fan_in, shape, jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, (self.features,), jnp.float32)
    x = mirror(x_BHWI.astype(self.dtype), self.pad)
    y = convolve(x, kernel.astype(self.dtype), stride=self.stride, blocks=self.blocks)
    return y if self.normalised else y + spread(bias, y)


class ResidualBlock(nn.Module):
  """conv3x3-norm-relu-conv3x3-norm beside the identity, no activation behind the sum; see `instance_norm`."""

  dtype: Dtype

  @nn.compact
  def __call__(self, x_BhwC: jax.Array, affine_B22C: jax.Array | None = None) -> jax.Array:
    """[B, h, w, C] -> [B, h, w, C]; `affine_B22C` holds shift and scale of either norm."""
    conv = functools.partial(Conv, x_BhwC.shape[-1], 3, normalised=True, dtype=self.dtype)
    first, second = (None, None) if affine_B22C is None else (affine_B22C[:, 0], affine_B22C[:, 1])
    y = nn.relu(instance_norm(conv(name='first')(x_BhwC), first))
    return x_BhwC + instance_norm(conv(name='second')(y), second)


# A row of the picture enlarged twofold, even or odd, sees these sums of the 5 taps through 3 rows of the small picture.
_PHASES = np.array(
  [[[1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]], [[1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 1]]],
  np.float32,
)


def upsampled_conv5x5(x_BhwI: jax.Array, kernel: jax.Array) -> jax.Array:
  """What a 5x5 kernel [5, 5, I, O] yields on x enlarged twofold (nearest) and then mirrored over its borders.

  -> [B, h, w, 2, 2, O] in x's dtype: a pixel's four parts, row by row; `from_parts` makes a picture of them. The
  kernel is float32. Neither the enlarged picture nor its 25 taps are needed: each part sees 3x3 pixels of x, by a
  kernel of its own.
  """
  batch, height, width, inputs = x_BhwI.shape
  phases = jnp.asarray(_PHASES)
  # Exact sums, whatever an accelerator multiplies in by default.
  small = jnp.einsum('ruy,svx,yxio->uvirso', phases, phases, kernel, precision=lax.Precision.HIGHEST)
  small, kernel = small.reshape(3, 3, inputs, -1).astype(x_BhwI.dtype), kernel.astype(x_BhwI.dtype)
  parts = convolve(mirror(x_BhwI, 1, 'symmetric'), small).reshape(batch, height, width, 2, 2, -1)

  # Mirroring is no padding of x, but differs from repeated edges only where the outermost tap of the outermost line
  # meets the last line but one instead of the last. Along such a line it is an ordinary convolution.
  for end in (False, True):
    row, column = end * (height - 1), end * (width - 1)
    inner, outer, tap, part = (-2, -1, 4, 1) if end else (1, 0, 0, 0)
    along_row = _along(x_BhwI[:, inner] - x_BhwI[:, outer], kernel[tap], 'reflect')
    along_column = _along(x_BhwI[:, :, inner] - x_BhwI[:, :, outer], kernel[:, tap], 'edge')
    parts = _add_at(parts, along_row.reshape(batch, 1, width, 1, 2, -1), (0, row, 0, part, 0, 0))
    parts = _add_at(parts, along_column.reshape(batch, height, 1, 2, 1, -1), (0, 0, column, 0, part, 0))
  return parts


def _along(line_BLI: jax.Array, taps: jax.Array, mode: str) -> jax.Array:
  """A line enlarged twofold and continued by two pixels at its ends, convolved by taps [5, I, O] -> [B, 2L, O]."""
  length = 2 * line_BLI.shape[1]
  line = jnp.take(line_BLI, np.pad(np.repeat(np.arange(length // 2), 2), 2, mode=mode), 1)
  windows = jnp.concatenate([line[:, t : t + length] for t in range(5)], -1)
  return lax.dot_general(windows, taps.reshape(-1, taps.shape[-1]), (((2,), (0,)), ((), ())))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _add_at(array: jax.Array, summand: jax.Array, start: tuple[int, ...]) -> jax.Array:
  """Adds to a part of an array, in place where nothing else needs the old values.

  Its gradient is the given one and a part of it; by derivation every part would be taken out and added again.
  """
  old = lax.dynamic_slice(array, start, summand.shape)
  return lax.dynamic_update_slice(array, old + summand, start)


_add_at.defvjp(
  lambda array, summand, start: (_add_at(array, summand, start), summand),
  lambda start, summand, y: (y, lax.dynamic_slice(y, start, summand.shape)),
)


def from_parts(parts: jax.Array) -> jax.Array:
  """[B, h, w, 2, 2, C] -> [B, 2h, 2w, C]: each pixel's four parts to where they belong."""
  batch, height, width, _, _, channels = parts.shape
  return parts.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, channels)


class Up(nn.Module):
  """Enlarges twofold (nearest), 5x5 convolution with bias, layer norm, ReLU.

  The layer norm is that of MUNIT (Huang et al. 2018): over a picture's pixels and channels together, (x - mean) / (std
  + 1e-5) with the unbiased standard deviation, then times `scale` [C] (U(0, 1) at first) plus `shift` [C] (zeros).
  """

  features: int
  dtype: Dtype

  @nn.compact
  def __call__(self, x_BhwI: jax.Array) -> jax.Array:
    """[B, h, w, I] -> [B, 2h, 2w, features] in `dtype`."""
    kernel = self.param('kernel', he_fan_in, (5, 5, x_BhwI.shape[-1], self.features), jnp.float32)
    vector = lambda name, init: jnp.tile(self.param(name, init, (self.features,), jnp.float32), 4)[None, None, None]
    bias = vector('bias', nn.initializers.zeros)
    scale, shift = vector('scale', nn.initializers.uniform(1.0)), vector('shift', nn.initializers.zeros)
    parts = upsampled_conv5x5(x_BhwI.astype(self.dtype), kernel)
    # A pixel's four parts as its channels: the norm has them all in one group, and keeps nothing but its input.
    x = parts.reshape(*parts.shape[:3], -1)
    x = x + spread(bias, x)
    normal = group_norm(x, scale, shift, groups=1, epsilon=1e-5, unbiased=True, dtype=self.dtype)
    return from_parts(nn.relu(normal).reshape(parts.shape))


class StyleEncoder(nn.Module):
  """Five convolutions with ReLU and no norm, the mean over all pixels, a linear layer."""

  dim: int
  style_dim: int
  dtype: Dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, H, W, 3] in [-1, 1] -> [B, style_dim] float32, unbounded."""
    x = nn.relu(Conv(self.dim, 7, pad=3, dtype=self.dtype, name='stem')(x))
    for i in range(_STYLE_DOWNSAMPLES):
      x = nn.relu(Conv(self.dim * 2 ** min(i + 1, 2), 4, 2, dtype=self.dtype, name=f'down{i}')(x))
    mean_BC = x.mean((1, 2), dtype=jnp.float32)
    return nn.Dense(self.style_dim, kernel_init=he_fan_in, name='out')(mean_BC)


class ContentEncoder(nn.Module):
  """Convolutions down to the content grid, then residual blocks, all with instance norm."""

  dim: int
  num_downsamples: int
  num_blocks: int
  dtype: Dtype
  remat: bool

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, H, W, 3] -> [B, h, w, C] in `dtype`."""
    conv = functools.partial(Conv, normalised=True, dtype=self.dtype)
    x = nn.relu(instance_norm(conv(self.dim, 7, pad=3, name='stem')(x)))
    for i in range(self.num_downsamples):
      x = nn.relu(instance_norm(conv(self.dim * 2 ** (i + 1), 4, 2, name=f'down{i}')(x)))
    block = nn.remat(ResidualBlock) if self.remat else ResidualBlock
    for i in range(self.num_blocks):
      x = block(self.dtype, name=f'block{i}')(x)
    return x


class Decoder(nn.Module):
  """Residual blocks whose norms take the style, then up to the picture, which is added to what is kept of the input."""

  dim: int
  mlp_dim: int
  num_downsamples: int
  num_blocks: int
  passes_through: bool
  dtype: Dtype
  remat: bool

  @nn.compact
  def __call__(self, x: jax.Array, style_BS: jax.Array, shortcut: jax.Array) -> jax.Array:
    """Content [B, h, w, C], style [B, S], shortcut [B, H, W, 3] -> picture [B, H, W, 3] float32."""
    dense = functools.partial(nn.Dense, kernel_init=he_fan_in)
    code = style_BS.astype(jnp.float32)
    for i in range(2):
      code = nn.relu(dense(self.mlp_dim, name=f'mlp{i}')(code))
    code = dense(self.num_blocks * 4 * x.shape[-1], name='mlp2')(code)
    affine = code.reshape(code.shape[0], self.num_blocks, 2, 2, x.shape[-1])

    block = nn.remat(ResidualBlock) if self.remat else ResidualBlock
    up = nn.remat(Up) if self.remat else Up
    x = x.astype(self.dtype)
    for i in range(self.num_blocks):
      x = block(self.dtype, name=f'block{i}')(x, affine[:, i])
    for i in range(self.num_downsamples):
      x = up(self.dim * 2 ** (self.num_downsamples - 1 - i), self.dtype, name=f'up{i}')(x)
    x = Conv(3, 7, pad=3, dtype=self.dtype, name='out')(x)
    picture = x.astype(jnp.float32) + shortcut.astype(jnp.float32)
    # The picture itself goes through this one, so it is exact whatever `dtype` is.
    init = pass_through if self.passes_through else he_fan_in
    return SameConv(3, 7, kernel_init=init, precision=lax.Precision.HIGHEST, name='final')(picture)


class IPMNet(nn.Module):
  """The generator; defaults are the public code's (15,088,191 parameters, without 672 that it never uses).

  A transfer is `decode(encode_content(target), encode_style(reference), target)`, where target stands for the content
  input that `jaxface.texture.content_input` makes of a photo: `module.apply(variables, image, method='encode_style')`.

  Attributes:
    dim: channels at full size; twice that at each halving.
    mlp_dim: width of the layers from the style to the decoder's norms.
    style_dim: S, length of the style code.
    num_downsamples: halvings from the picture to the content.
    num_blocks: residual blocks in the content encoder and in the decoder.
    passes_through: a fresh network's last convolution, which all of the picture goes through, changes nothing. The
      public code draws it, too; before it has become sharp, which takes longer than the rest, backgrounds are blurred.
    dtype: of the convolutions' work; parameters, statistics, styles and pictures are float32.
    remat: recompute residual blocks and enlargements in the backward pass: less memory, more time.
  """

  dim: int = 64
  mlp_dim: int = 256
  style_dim: int = 128
  num_downsamples: int = 2
  num_blocks: int = 4
  passes_through: bool = False
  dtype: Dtype = jnp.float32
  remat: bool = False

  def __post_init__(self):
    check_at_least(1, self, 'dim', 'mlp_dim', 'style_dim', 'num_downsamples', 'num_blocks')
    super().__post_init__()

  def setup(self):
    """Names the three parts, which the methods share."""
    shape = {'num_downsamples': self.num_downsamples, 'num_blocks': self.num_blocks}
    self.style = StyleEncoder(self.dim, self.style_dim, self.dtype)
    options = {'dtype': self.dtype, 'remat': self.remat}
    self.content = ContentEncoder(self.dim, **shape, **options)
    self.decoder = Decoder(self.dim, self.mlp_dim, **shape, passes_through=self.passes_through, **options)

  def encode_style(self, image: jax.Array) -> jax.Array:
    """Picture [B, H, W, 3] in [-1, 1], makeup and all; sides of at least 16 -> its style [B, S], float32."""
    self._check(image, 1)
    return self.style(image)

  def encode_content(self, content_input: jax.Array) -> jax.Array:
    """What a photo keeps [B, H, W, 3] (see `jaxface.texture.content_input`) -> content [B, h, w, C] in `dtype`.

    Sides are multiples of 2^num_downsamples = H / h, at least 16; C = dim * 2^num_downsamples.
    """
    self._check(content_input, 2**self.num_downsamples)
    return self.content(content_input)

  def decode(self, content: jax.Array, style: jax.Array, shortcut: jax.Array) -> jax.Array:
    """Content [B, h, w, C], style [B, S] and what the photo keeps [B, H, W, 3] -> picture [B, H, W, 3], float32.

    It is meant to lie in [-1, 1] but not bounded: clip it.
    """
    expected = (content.shape[0], *(side << self.num_downsamples for side in content.shape[1:3]), 3)
    if shortcut.shape != expected or style.shape != (content.shape[0], self.style_dim):
      raise UserError(
        f'content {content.shape}, style {style.shape} and shortcut {shortcut.shape} do not fit; '
        f'that content goes with a style {(content.shape[0], self.style_dim)} and a shortcut {expected}'
      )
    return self.decoder(content, style, shortcut)

  def __call__(self, image: jax.Array, content_input: jax.Array, style: jax.Array | None = None) -> jax.Array:
    """The photo [B, H, W, 3] in [-1, 1] with its own makeup, or with that of `style` [B, S] -> [B, H, W, 3]."""
    style = self.encode_style(image) if style is None else style
    return self.decode(self.encode_content(content_input), style, content_input)

  def _check(self, image: jax.Array, multiple: int) -> None:
    check_floats(image, 'IPM-Net')
    smallest = max(2**_STYLE_DOWNSAMPLES, 2 * multiple)
    if image.ndim != 4 or image.shape[-1] != 3 or min(image.shape[1:3]) < smallest:
      raise UserError(f'pictures of shape {image.shape} given to IPM-Net; it takes [B, H, W, 3] from {smallest} pixels')
    if any(side % multiple for side in image.shape[1:3]):
      height, width = image.shape[1:3]
      raise UserError(
        f'pictures of {height}x{width} pixels given to IPM-Net; sides must be multiples of {multiple}, such as '
        f'{height // multiple * multiple}x{width // multiple * multiple}'
      )


def halve(x_BHWC: jax.Array) -> jax.Array:
  """Averages of 3x3 pixels, two apart, centred on the even ones: [B, H, W, C] -> [B, ceil(H/2), ceil(W/2), C].

  Pixels outside count for nothing, so each axis is a product with a matrix of its own.
  """
  for axis in (1, 2):
    length = x_BHWC.shape[axis]
    distance = np.abs(2 * np.arange(-(-length // 2))[:, None] - np.arange(length)[None])
    weights = (distance <= 1) / (distance <= 1).sum(1, keepdims=True)
    y = lax.dot_general(
      x_BHWC, jnp.asarray(weights, x_BHWC.dtype), (((axis,), (1,)), ((), ())), precision=lax.Precision.HIGHEST
    )
    x_BHWC = jnp.moveaxis(y, -1, axis)
  return x_BHWC


class MultiScaleDiscriminator(nn.Module):
  """A patch discriminator for each of several sizes of the picture, every one half the one before; scores, no sigmoid.

  Each is `num_layers` 4x4 convolutions by stride 2, mirrored borders, leaky ReLU 0.2, no norm, and a 1x1 convolution.
  Defaults are the public code's (8,271,171 parameters).

  Attributes:
    dim: channels of the first layer; twice that for each next.
    num_layers: convolutions of a scale before its last.
    num_scales: sizes of the picture that are looked at.
    dtype: of the convolutions' work; parameters and scores are float32.
  """

  dim: int = 64
  num_layers: int = 4
  num_scales: int = 3
  dtype: Dtype = jnp.float32

  def __post_init__(self):
    check_at_least(1, self, 'dim', 'num_layers', 'num_scales')
    super().__post_init__()

  @nn.compact
  def __call__(self, image: jax.Array) -> tuple[jax.Array, ...]:
    """Picture [B, H, W, 3] in [-1, 1] -> one score map [B, h, w, 1] a scale, float32; 256 -> 16, 8 and 4 pixels."""
    smallest = 2 ** (self.num_layers + self.num_scales - 1)
    if image.ndim != 4 or image.shape[-1] != 3 or min(image.shape[1:3]) < smallest:
      raise UserError(
        f'pictures of shape {image.shape} given to a discriminator of {self.num_scales} scales and {self.num_layers} '
        f'layers; it takes [B, H, W, 3] from {smallest} pixels'
      )
    scores = []
    for scale in range(self.num_scales):
      if scale:
        image = halve(image)
      x = image
      for layer in range(self.num_layers):
        conv = Conv(self.dim * 2**layer, 4, 2, dtype=self.dtype, blocks=True, name=f'scale{scale}_conv{layer}')
        x = nn.leaky_relu(conv(x), 0.2)
      scores.append(nn.Dense(1, kernel_init=he_fan_in, name=f'scale{scale}_out')(x.astype(jnp.float32)))
    return tuple(scores)
