"""LPIPS v0.1 (Zhang et al. 2018): how different two pictures look, by the activations of a network that knows pictures.

A distance: 0 for equal pictures, lower is more alike, symmetric. Matches the `lpips` package (richzhang/
PerceptualSimilarity) in evaluation mode. Figures of different networks do not compare; papers mostly report AlexNet's,
and train with VGG's.
"""

# B batch | H,W pixels | h,w positions of a tap | C channels | T taps

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxface import resize
from jaxface.errors import UserError
from jaxface.filters import picture_pair
from jaxface.models import alexnet, squeezenet, vgg

NETS = ('alex', 'vgg', 'squeeze')
CHANNELS = {'alex': alexnet.CHANNELS, 'vgg': (64, 128, 256, 512, 512), 'squeeze': squeezenet.CHANNELS}
LEAST_SIDE = {'alex': 31, 'vgg': 16, 'squeeze': 17}

_VGG_TAPS = ('relu1_2', 'relu2_2', 'relu3_3', 'relu4_3', 'relu5_3')
# What the reference normalises by, for pictures in [-1, 1]: nearly ImageNet's mean and deviation, and not quite.
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_EPSILON = 1e-10


def make_backbone(
  net: str, precision: jax.lax.PrecisionLike = 'highest', **options
) -> alexnet.AlexNet | vgg.Vgg | squeezenet.SqueezeNet:
  """The network whose activations LPIPS compares; `net` as in `NETS`, options as any Flax module has them."""
  if net == 'vgg':
    return vgg.Vgg(_VGG_TAPS, precision=precision, **options)
  return {'alex': alexnet.AlexNet, 'squeeze': squeezenet.SqueezeNet}[net](precision, **options)


class Lpips(nn.Module):
  """The metric as a network: `module.apply(variables, a, b)` -> [B]; pictures in [0, 1], the reference has [-1, 1].

  Variables are the backbone's (`backbone`) and, for each tap, a non-negative weight a channel (`tap0`, `tap1`, ...).
  Gradients are finite for any pictures; where all of a tap's channels are 0 (the reference's gradient is NaN) they
  are 0.

  Attributes:
    net: the backbone, 'alex', 'vgg' (VGG-16) or 'squeeze' (SqueezeNet 1.1).
    precision: of the convolutions, as `jax.lax.Precision`. As a loss, None (the backend's default) is faster.
  """

  net: str = 'alex'
  precision: jax.lax.PrecisionLike = 'highest'

  def __post_init__(self):
    if self.net not in NETS:
      raise UserError(f'unknown LPIPS network {self.net!r}; choose from {", ".join(NETS)}')
    super().__post_init__()

  def __call__(self, a: jax.Array, b: jax.Array) -> jax.Array:
    """LPIPS of RGB float pictures [B, H, W, 3] in [0, 1] -> float32 [B].

    UserError for integers, shapes that differ, and pictures smaller than the network (`LEAST_SIDE`).
    """
    return self.terms(a, b).sum(-1)

  def terms(self, a: jax.Array, b: jax.Array) -> jax.Array:
    """What it is the sum of: a term for each tap, float32 [B, T]."""
    return jnp.stack([map_Bhw.mean((1, 2)) for map_Bhw in self._tap_maps(a, b)], -1)

  def spatial(self, a: jax.Array, b: jax.Array) -> jax.Array:
    """Where they differ: float32 [B, H, W, 1], each tap's map resized bilinearly to the pictures' size, and summed.

    Its mean is near LPIPS, and not equal: resizing shifts weight at the edges.
    """
    size = a.shape[1:3]
    maps = (resize.bilinear(map_Bhw[..., None], size, align_corners=False) for map_Bhw in self._tap_maps(a, b))
    return sum(maps)

  @nn.compact
  def _tap_maps(self, a, b):
    a, b = picture_pair(a, b)
    least = LEAST_SIDE[self.net]
    if a.ndim != 4 or a.shape[-1] != 3 or min(a.shape[1:3]) < least:
      raise UserError(f'LPIPS ({self.net}) takes RGB pictures [B, H, W, 3] with sides from {least} on, not {a.shape}')
    backbone = make_backbone(self.net, self.precision, name='backbone')
    # Two passes and not one over both: where one picture is a constant, its half needs no gradient.
    maps = []
    for tap, (x, y) in enumerate(zip(backbone(_normalised(a)), backbone(_normalised(b)), strict=True)):
      weight = self.param(f'tap{tap}', nn.initializers.ones, (x.shape[-1],))
      # Sums of squares, not a matrix product: no accelerator should round them.
      maps.append(jnp.sum(jnp.square(unit_length(x) - unit_length(y)) * weight[None, None, None], -1))
    return maps


def _normalised(image_BHWC):
  shift, scale = (jnp.array(values)[None, None, None] for values in (_SHIFT, _SCALE))
  return (2 * image_BHWC - 1 - shift) / scale


def unit_length(x_BhwC: jax.Array) -> jax.Array:
  """Every position's channels over their Euclidean length (plus 1e-10); zeros stay zeros, with gradient 0."""
  squares = jnp.sum(jnp.square(x_BhwC), -1, keepdims=True)
  positive = squares > 0
  length = jnp.sqrt(jnp.where(positive, squares, 1.0))
  return x_BhwC * jnp.where(positive, 1 / (length + _EPSILON), 0.0)
