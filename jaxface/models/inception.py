"""The Inception network that FID is defined by: TensorFlow's of 2015-12-05, in the layout of pytorch-fid's port.

An Inception v3 (Szegedy et al. 2016) with pools of its own: average pools do not count the padding, and the last block
has a max pool. It is only ever used frozen, so each BatchNorm is part of its convolution's kernel and bias.
"""

# B batch | H,W pixels | C channels

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxface import resize
from jaxface.errors import check_floats
from jaxface.max_pool import max_pool3x3

SIDE = 299
FEATURES = 2048


class InceptionFeatures(nn.Module):
  """Pictures -> the 2,048 features of the last pool ('pool3') that FID and KID compare."""

  def __call__(self, image_BHWC: jax.Array) -> jax.Array:
    """RGB floats [B, H, W, 3] in [0, 1] of any size -> float32 [B, 2048]."""
    return self.blocks(image_BHWC)[-1].mean((1, 2))

  @nn.compact
  def blocks(self, image_BHWC: jax.Array) -> tuple[jax.Array, ...]:
    """The four stages that the port calls blocks: [B, 73, 73, 64], [B, 35, 35, 192], [B, 17, 17, 768], [B, 8, 8, 2048].

    Pictures become 299x299 as in the port: bilinear, edges aligned, without antialiasing also where they shrink.
    """
    check_floats(image_BHWC, 'Inception')
    x = 2 * resize.bilinear(image_BHWC.astype(jnp.float32), (SIDE, SIDE), align_corners=False) - 1
    x = self._conv('Conv2d_1a_3x3', 32, 3, x, stride=2, padding='VALID')
    x = self._conv('Conv2d_2a_3x3', 32, 3, x, padding='VALID')
    first = x = max_pool3x3(self._conv('Conv2d_2b_3x3', 64, 3, x))
    x = self._conv('Conv2d_3b_1x1', 80, 1, x)
    second = x = max_pool3x3(self._conv('Conv2d_4a_3x3', 192, 3, x, padding='VALID'))
    for name, pooled in (('Mixed_5b', 32), ('Mixed_5c', 64), ('Mixed_5d', 64)):
      x = self._mixed_35(name, pooled, x)
    x = self._reduce_to_17('Mixed_6a', x)
    for name, inner in (('Mixed_6b', 128), ('Mixed_6c', 160), ('Mixed_6d', 160), ('Mixed_6e', 192)):
      x = self._mixed_17(name, inner, x)
    third = x
    x = self._reduce_to_8('Mixed_7a', x)
    x = self._mixed_8('Mixed_7b', _average, x)
    return first, second, third, self._mixed_8('Mixed_7c', _largest, x)

  def _conv(self, name, features, size, x, *, stride=1, padding='SAME'):
    size = (size, size) if isinstance(size, int) else size
    # A backend's default may round to bfloat16 or TF32, which published figures do not.
    return nn.relu(nn.Conv(features, size, stride, padding, precision='highest', name=name)(x))

  def _chain(self, name, convs, x):
    """Convolutions one after the other, given as (suffix, features, size)."""
    for suffix, features, size in convs:
      x = self._conv(f'{name}_{suffix}', features, size, x)
    return x

  def _mixed_35(self, name, pooled, x):
    return jnp.concatenate(
      [
        self._chain(name, [('branch1x1', 64, 1)], x),
        self._chain(name, [('branch5x5_1', 48, 1), ('branch5x5_2', 64, 5)], x),
        self._chain(name, [('branch3x3dbl_1', 64, 1), ('branch3x3dbl_2', 96, 3), ('branch3x3dbl_3', 96, 3)], x),
        self._chain(name, [('branch_pool', pooled, 1)], _average(x)),
      ],
      -1,
    )

  def _reduce_to_17(self, name, x):
    double = self._chain(name, [('branch3x3dbl_1', 64, 1), ('branch3x3dbl_2', 96, 3)], x)
    return jnp.concatenate(
      [
        self._conv(f'{name}_branch3x3', 384, 3, x, stride=2, padding='VALID'),
        self._conv(f'{name}_branch3x3dbl_3', 96, 3, double, stride=2, padding='VALID'),
        max_pool3x3(x),
      ],
      -1,
    )

  def _mixed_17(self, name, inner, x):
    wide, tall = (1, 7), (7, 1)
    once = [('branch7x7_1', inner, 1), ('branch7x7_2', inner, wide), ('branch7x7_3', 192, tall)]
    twice = [
      ('branch7x7dbl_1', inner, 1),
      ('branch7x7dbl_2', inner, tall),
      ('branch7x7dbl_3', inner, wide),
      ('branch7x7dbl_4', inner, tall),
      ('branch7x7dbl_5', 192, wide),
    ]
    return jnp.concatenate(
      [
        self._chain(name, [('branch1x1', 192, 1)], x),
        self._chain(name, once, x),
        self._chain(name, twice, x),
        self._chain(name, [('branch_pool', 192, 1)], _average(x)),
      ],
      -1,
    )

  def _reduce_to_8(self, name, x):
    short = self._chain(name, [('branch3x3_1', 192, 1)], x)
    long = self._chain(
      name, [('branch7x7x3_1', 192, 1), ('branch7x7x3_2', 192, (1, 7)), ('branch7x7x3_3', 192, (7, 1))], x
    )
    return jnp.concatenate(
      [
        self._conv(f'{name}_branch3x3_2', 320, 3, short, stride=2, padding='VALID'),
        self._conv(f'{name}_branch7x7x3_4', 192, 3, long, stride=2, padding='VALID'),
        max_pool3x3(x),
      ],
      -1,
    )

  def _mixed_8(self, name, pool, x):
    single = self._chain(name, [('branch3x3_1', 384, 1)], x)
    double = self._chain(name, [('branch3x3dbl_1', 448, 1), ('branch3x3dbl_2', 384, 3)], x)
    return jnp.concatenate(
      [
        self._chain(name, [('branch1x1', 320, 1)], x),
        self._conv(f'{name}_branch3x3_2a', 384, (1, 3), single),
        self._conv(f'{name}_branch3x3_2b', 384, (3, 1), single),
        self._conv(f'{name}_branch3x3dbl_3a', 384, (1, 3), double),
        self._conv(f'{name}_branch3x3dbl_3b', 384, (3, 1), double),
        self._chain(name, [('branch_pool', 192, 1)], pool(x)),
      ],
      -1,
    )


def _largest(x):
  return nn.max_pool(x, (3, 3), (1, 1), 'SAME')


def _average(x):
  return nn.avg_pool(x, (3, 3), (1, 1), 'SAME', count_include_pad=False)
