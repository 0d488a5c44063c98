"""Adversarial losses of discriminators at several scales, with their gradient penalty."""

# B batch | H,W sides of a picture | h,w sides of a map of scores

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxface.errors import UserError

# A picture [B, H, W, 3] -> scores [B, h, w, 1], for each scale.
Discriminator = Callable[[jax.Array], Sequence[jax.Array]]


def _least_squares(scores: jax.Array, real: bool) -> jax.Array:
  return jnp.square(scores - real).mean()


def _cross_entropy(logits: jax.Array, real: bool) -> jax.Array:
  return jax.nn.softplus(-logits if real else logits).mean()


# Mao et al. 2017; Goodfellow et al. 2014, the generator's loss the non-saturating one.
KINDS = {'lsgan': _least_squares, 'log': _cross_entropy}


def measure_of(name: str) -> Callable[[jax.Array, bool], jax.Array]:
  """(scores, whether they should say real) -> how far they are from it, scalar; `name` one of KINDS."""
  if name not in KINDS:
    raise UserError(f'unknown loss.gan {name!r}; choose from {", ".join(KINDS)}')
  return KINDS[name]


def generator_loss(kind: str, discriminator: Discriminator, fake: jax.Array) -> jax.Array:
  """How far `fake` is from being taken for real, summed over the scales; `kind` one of KINDS."""
  return sum(measure_of(kind)(scores, True) for scores in discriminator(fake))


def discriminator_loss(
  kind: str, discriminator: Discriminator, fake: jax.Array, real: jax.Array, *, penalty: float = 0.0
) -> jax.Array:
  """How badly the two are told apart, summed over the scales, and `penalty` times `gradient_penalty` of `real`."""
  measure = measure_of(kind)
  loss = sum(measure(scores, False) for scores in discriminator(fake))
  loss += sum(measure(scores, True) for scores in discriminator(real))
  return loss + penalty * gradient_penalty(discriminator, real) if penalty else loss


def gradient_penalty(discriminator: Discriminator, real: jax.Array) -> jax.Array:
  """Mean over the batch of |d(sum of a scale's scores) / d(real)|^2, summed over the scales (Mescheder et al. 2018)."""
  scales = len(jax.eval_shape(discriminator, real))

  def of_scale(scale: int) -> jax.Array:
    # Traced once a scale, so that a scale's gradient runs through that scale's layers only.
    gradient = jax.grad(lambda image: discriminator(image)[scale].sum())(real)
    return jnp.square(gradient).sum((1, 2, 3)).mean()

  return sum(of_scale(scale) for scale in range(scales))
