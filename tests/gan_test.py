"""The adversarial losses from their definitions; IPM-Net's golden has the least squares, not the logarithm."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import gan


def _judge(image):
  """Scores of two scales that differ in size, of pictures that differ in brightness."""
  mean = image.mean((1, 2, 3), keepdims=True)
  return jnp.repeat(2 * mean, 2, 1), mean - 1


def test_the_log_gan_is_cross_entropy_and_its_generator_does_not_saturate():
  brightness = np.array([[-0.7, 0.4], [0.9, 2.0]])  # Of made pictures and of real ones.
  fake, real = (np.full((2, 4, 4, 3), value.reshape(2, 1, 1, 1), np.float32) for value in brightness)
  of_fake, of_real = ([1 / (1 + np.exp(-2 * x)), 1 / (1 + np.exp(1 - x))] for x in brightness)
  generator = sum(-np.log(p).mean() for p in of_fake)
  judges = sum(-np.log(1 - p).mean() for p in of_fake) + sum(-np.log(p).mean() for p in of_real)
  np.testing.assert_allclose(gan.generator_loss('log', _judge, fake), generator, rtol=1e-5)
  np.testing.assert_allclose(gan.discriminator_loss('log', _judge, fake, real), judges, rtol=1e-5)
  # A scale's sum of scores changes by 4 / 48 and by 1 / 48 with each of a picture's 48 numbers.
  penalty = (4**2 + 1) / 48
  penalised = gan.discriminator_loss('log', _judge, fake, real, penalty=10.0)
  assert penalised == pytest.approx(judges + 10 * penalty, rel=1e-5)
