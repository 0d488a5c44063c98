"""What IPM-Net keeps of a photo while it repaints the face: the background, and the texture of the skin.

Huang et al. 2020, section 3.2, as the public code (huangzhikun1995/IPM-Net) computes it. Everything has static shapes
and belongs inside a jitted step.
"""

# B batch | H,W pixels

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxface import filters, labels
from jaxface.errors import UserError, check_at_least
from jaxface.resize import bicubic_levels

# What makeup is put on; all else stays as it is.
REPAINTED = ('skin', 'nose', 'l_brow', 'r_brow', 'u_lip', 'l_lip')
# Of these, the parts whose texture is raised by another gain than the skin's.
FEATURES = ('nose', 'l_brow', 'r_brow', 'u_lip', 'l_lip')
# Holes in the repainted region that do not count as its border; hair, glasses and all else do.
HOLES = ('l_eye', 'r_eye', 'mouth')

# Side of the pictures that the recipes are for: those of Makeup Transfer (361), resized.
RECIPE_SIZE = 321


def _one_of(label: jax.Array, names: tuple[str, ...]) -> jax.Array:
  """bool, shaped as `label`: whether a pixel's class is among `names`. A value that is no class is not."""
  indices = [labels.index(name) for name in names]
  return jnp.any(jnp.stack([label == index for index in indices]), 0)


def keep_mask(label: jax.Array) -> jax.Array:
  """Label map [B, H, W] in the project's order -> float32 [B, H, W, 1]: 0 where the face is repainted, 1 elsewhere.

  Skin, brows, nose and lips are repainted; eyes, the inside of the mouth, glasses, ears, hair and the rest are kept.
  """
  return 1 - _one_of(label, REPAINTED).astype(jnp.float32)[..., None]


def content_input(
  image: jax.Array, keep_mask: jax.Array, texture: jax.Array, weight: jax.Array | float = 1.0
) -> jax.Array:
  """What the content encoder sees of a photo, and what the decoder adds its picture to.

  Args:
    image: [B, H, W, 3] in [-1, 1].
    keep_mask: [B, H, W, 1] in [0, 1]; a share v between 0 and 1 keeps (v + 1) / 2, as in the public code.
    texture: [B, H, W, 1] in [0, 1], see `texture`. It is subtracted, where the paper has it added.
    weight: of the texture, scalar or [B]; the public code draws it from U(0.8, 1.2), here 1 is the mean.

  Returns:
    float32 [B, H, W, 3]: the kept parts, and mid grey (0) less twice the texture in the others; not clipped.
  """
  kept = jnp.where(keep_mask == 0, 0.0, (keep_mask + 1) / 2)
  weight = jnp.asarray(weight, jnp.float32).reshape(-1, 1, 1, 1)
  return image.astype(jnp.float32) * kept - 2 * weight * texture


@dataclasses.dataclass(frozen=True)
class TextureRecipe:
  """How the texture is made of the blue channel; the defaults are those of the published script and of 321 pixels.

  The stored textures of the public repository have three steps that its script lacks: the face's rim is taken off,
  the rest multiplied and smoothed. `RECIPES` has both.

  Attributes:
    kernel_size: taps of the Gaussian that is subtracted. An even one is centred on the last tap of its first half.
    sigma: of the Gaussian, in pixels.
    erosion: radii of a square and of a diamond, by both of which the face is eroded (together an octagon): (2, 2) is
      9 pixels across. Eyes and mouth are no borders, hair is; (0, 0) erodes nothing.
    gain_skin: whole number that the texture is multiplied by on the skin.
    gain_features: the same on brows, nose and lips.
    smooth: average over 3x3 pixels in the end.
  """

  kernel_size: int = 10
  sigma: float = 2.0
  erosion: tuple[int, int] = (0, 0)
  gain_skin: int = 1
  gain_features: int = 1
  smooth: bool = False

  def __post_init__(self) -> None:
    if self.kernel_size < 2 or self.sigma <= 0:
      raise UserError(f'texture of kernel_size={self.kernel_size}, sigma={self.sigma}; give at least 2, and above 0')
    if len(self.erosion) != 2 or min(self.erosion) < 0:
      raise UserError(f'texture.erosion={self.erosion}; give two radii of at least 0')
    check_at_least(0, self, 'gain_skin', 'gain_features', part='texture.')

  def scaled(self, size: int) -> 'TextureRecipe':
    """The recipe for whole pictures of `size` pixels a side; a crop is not smaller for being a crop.

    Kernel and sigma change in proportion, rounded, the kernel in steps of two; but not below 4 taps and a sigma of 0.8,
    which resolve a Gaussian. The erosion follows the kernel, whose rim it takes off. Smoothing is left out where 3x3
    pixels are more than twice of what they are at 321. Gains stay.
    """
    if size < 1:
      raise UserError(f'a texture of {size} pixels a side; give at least 1')
    share = size / RECIPE_SIZE
    kernel_size = max(self.kernel_size - 2 * round(self.kernel_size * (1 - share) / 2), min(self.kernel_size, 4))
    return dataclasses.replace(
      self,
      kernel_size=kernel_size,
      sigma=max(self.sigma * share, min(self.sigma, 0.8)),
      erosion=tuple(round(radius * kernel_size / self.kernel_size) for radius in self.erosion),
      smooth=self.smooth and share > 0.5,
    )


_STORED = TextureRecipe(erosion=(2, 2), smooth=True)

# By name: the stored textures of pictures with makeup and without, and what the published script makes.
RECIPES = {
  'makeup': dataclasses.replace(_STORED, gain_skin=3, gain_features=6),
  'non_makeup': dataclasses.replace(_STORED, gain_skin=6, gain_features=14),
  'published': TextureRecipe(),
}


def texture(image: jax.Array, label: jax.Array, recipe: TextureRecipe) -> jax.Array:
  """Texture of the faces: by how much blue is above its surroundings; where it is not, and outside the face, 0.

  Args:
    image: [B, H, W, 3] RGB in 0..255, or its blue [B, H, W, 1]; uint8 or floats, which are rounded.
    label: [B, h, w], classes in the project's order; where (h, w) is not (H, W), the image is resized to it, as the
      published script does (`resize.bicubic_levels`).
    recipe: see `RECIPES`.

  Returns:
    float32 [B, h, w, 1] in [0, 1], whole 255ths. It has no useful gradient.
  """
  levels = bicubic_levels(_rounded(image[..., -1:].astype(jnp.float32)), label.shape[1:3])
  face = _one_of(label, REPAINTED)
  blue = jnp.where(face[..., None], levels, 0)

  # As planes [h, B, w], for the filters.
  planes = filters.to_planes(blue)
  face, holes, features = (
    filters.to_planes(part[..., None]) for part in (face, _one_of(label, HOLES), _one_of(label, FEATURES))
  )
  window = filters.gaussian(recipe.kernel_size, recipe.sigma)
  contrast = jnp.maximum(planes - _rounded(_filtered(planes, window)), 0)
  if any(recipe.erosion):
    contrast = jnp.where(_eroded(face | holes, recipe.erosion), contrast, 0)
  contrast = jnp.minimum(contrast * jnp.where(features, recipe.gain_features, recipe.gain_skin), 255)
  if recipe.smooth:
    contrast = _rounded(_filtered(contrast, np.ones(3, np.float32)) / 9)
  return filters.from_planes(contrast / 255, label.shape[:1], 1)


def _rounded(x: jax.Array) -> jax.Array:
  """Halves up: uint8 arithmetic, where nothing is negative."""
  return jnp.floor(x + 0.5)


def _filtered(planes: jax.Array, window: np.ndarray) -> jax.Array:
  """Correlation with zeros outside, of the planes' size; even windows as `TextureRecipe.kernel_size` has it."""
  before, after = (len(window) - 1) // 2, len(window) // 2
  return filters.blur(jnp.pad(planes, ((before, after), (0, 0), (before, after))), window)


def _eroded(inside: jax.Array, radii: tuple[int, int]) -> jax.Array:
  """Planes bool [h, B, w] -> bool: pixels about which all the octagon is inside; what lies outside the picture is."""
  square, diamond = radii

  def least(x: jax.Array, radius: int, axis: int) -> jax.Array:
    window = tuple(2 * radius + 1 if a == axis else 1 for a in range(3))
    return lax.reduce_window(x, True, lax.bitwise_and, window, (1, 1, 1), 'SAME')

  inside = least(least(inside, square, 0), square, 2)
  for _ in range(diamond):
    inside = least(inside, 1, 0) & least(inside, 1, 2)
  return inside
