"""Losses by the features of a frozen network: a face network's for identity, VGG-19's for what a picture shows."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxface import weights
from jaxface.errors import UserError
from jaxface.layers import Dtype
from jaxface.models.resnet50_face import SMALLEST, FaceResNet50, random_variables
from jaxface.models.vgg import VGG19, Vgg
from jaxface.state import PyTree
from jaxface.untrained import untrained


@dataclasses.dataclass(frozen=True)
class PerceptualLoss:
  """Mean distance between a network's features of two batches of pictures in [-1, 1], float [B, H, W, 3].

  Of several maps of features the means are summed.
  """

  module: nn.Module
  distance: Callable[[jax.Array], jax.Array]

  def __call__(self, variables: PyTree, made: jax.Array, true: jax.Array) -> jax.Array:
    """Scalar; `variables` those of the module, frozen. Of `true` no gradient is taken."""
    features = [self.module.apply(variables, image) for image in (made, jax.lax.stop_gradient(true))]
    pairs = zip(*map(jax.tree.leaves, features), strict=True)
    return sum(self.distance(a.astype(jnp.float32) - b.astype(jnp.float32)).mean() for a, b in pairs)


def face_features(name: str, side: int) -> tuple[PerceptualLoss | None, PyTree]:
  """L1 distance of face ResNet-50 features (IPM-Net) and the variables, for pictures of `side` pixels.

  Always in float32: fifty layers without norms in bfloat16 turn its gradient by 20 degrees (untrained, on noise).

  'vggface2': the published weights, converted before. 'random': a network never trained, which is what the public
  IPM-Net code compares by, for it loads the weights and never puts them in place. 'none': no such term.
  """
  if name == 'none':
    return None, None
  pool = 'window' if side >= SMALLEST else 'global'
  if name == 'random':
    module = FaceResNet50(pool=pool)
    variables = random_variables(0, module)
  elif name == 'vggface2':
    network = weights.load('resnet50_face')
    # The backend's own precision: a loss need not be exact to the last digits.
    module, variables = network.module.clone(pool=pool, precision=None), network.variables
  else:
    raise UserError(f'unknown loss.perceptual {name!r}; choose from vggface2, random, none')
  return PerceptualLoss(module, jnp.abs), variables


def vgg_features(name: str, dtype: Dtype = jnp.float32) -> tuple[PerceptualLoss | None, PyTree]:
  """Squared distance of VGG-19 features, in `dtype`, which BeautyGAN's faces keep their own by; and the variables.

  'vgg19': relu4_1 of the published weights, converted before. 'random': relu3_1 of a network an eighth as wide and
  never trained, for data and machines that are small: it knows no faces, but where in a picture what is. 'none': no
  such term; then nothing keeps the generator from giving out the reference itself. 'untrained:vgg19': see
  `weights.load`.
  """
  if name == 'none':
    return None, None
  if name == 'random':
    module = Vgg(('relu3_1',), VGG19, widths=(8, 16, 32, 64, 64), dtype=dtype)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    return PerceptualLoss(module, jnp.square), untrained(shapes)
  if name.removeprefix(weights.UNTRAINED) != 'vgg19':
    raise UserError(f'unknown loss.perceptual {name!r}; choose from vgg19, random, none')
  network = weights.load(name)
  return PerceptualLoss(network.module.clone(dtype=dtype), jnp.square), network.variables
