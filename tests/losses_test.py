"""The VAE's loss terms against stored numbers of its Keras code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import losses
from tests.golden import load


@pytest.fixture(scope='module')
def golden():
  return load('vae/losses')[2]


def assert_gradient_close(actual, expected):
  np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-3 * np.abs(expected).max())


def test_kl_matches_the_golden(golden):
  kl, gradient = jax.jit(jax.value_and_grad(losses.kl_divergence, argnums=1))(golden['z_mean'], golden['z_logvar'])
  np.testing.assert_allclose(kl, golden['loss_kl_factor_1'], rtol=1e-4)
  np.testing.assert_allclose(1e-3 * kl, golden['loss_kl'], rtol=1e-4)
  assert_gradient_close(gradient, golden['grad_kl1_z_logvar'])


def test_kl_is_that_of_gaussians():
  # KL(N(m, s^2) || N(0, 1)) by numerical integration.
  m, s, x = 0.7, 0.4, np.linspace(-12, 12, 200_001)
  p = np.exp(-0.5 * ((x - m) / s) ** 2) / (s * np.sqrt(2 * np.pi))
  log_ratio = -0.5 * ((x - m) / s) ** 2 - np.log(s) + 0.5 * x**2
  expected = np.sum(p * log_ratio) * (x[1] - x[0])
  np.testing.assert_allclose(
    losses.kl_divergence(jnp.full((3, 5), m), jnp.full((3, 5), jnp.log(s))), expected, rtol=1e-5
  )


def test_picture_losses_match_the_golden(golden):
  a, b = golden['y_true'], golden['y_pred']
  ssim, gradient = jax.jit(jax.value_and_grad(losses.ssim_loss))(b, a)
  np.testing.assert_allclose(ssim, golden['loss_ssim'], rtol=1e-4)
  assert_gradient_close(gradient[:, ::2, ::2], golden['grad_ssim_y_pred'])
  np.testing.assert_allclose(4 * losses.l1_loss(b, a), golden['loss_mae'], rtol=1e-4)
  np.testing.assert_allclose(100 * losses.l2_loss(b, a), golden['loss_mse'], rtol=1e-4)
  np.testing.assert_allclose(ssim + 5 * losses.l1_loss(b, a), golden['loss_ssim_add_mae'], rtol=1e-4)


def test_mask_losses_match_the_golden(golden):
  target, prediction = golden['mask'], golden['mask_pred']
  np.testing.assert_allclose(losses.binary_cross_entropy(prediction, target), golden['loss_bce'], rtol=1e-4)
  np.testing.assert_allclose(losses.dice_loss(prediction, target), golden['loss_dice'], rtol=1e-4)
  saturated = losses.binary_cross_entropy(golden['mask_pred_saturated'], golden['mask_saturated'])
  np.testing.assert_allclose(saturated, golden['loss_bce_saturated'], rtol=1e-4)

  def both(prediction):
    return losses.binary_cross_entropy(prediction, target) + losses.dice_loss(prediction, target)

  value, gradient = jax.jit(jax.value_and_grad(both))(prediction)
  np.testing.assert_allclose(value, golden['loss_bce_plus_dice'], rtol=1e-4)
  assert_gradient_close(gradient[:, ::2, ::2], golden['grad_bce_dice_mask_pred'])


def test_cross_entropy_of_logits_is_that_of_probabilities_and_exact_beyond(golden):
  logits = jnp.log(golden['mask_pred'] / (1 - golden['mask_pred']))
  np.testing.assert_allclose(
    losses.binary_cross_entropy_from_logits(logits, golden['mask']), golden['loss_bce'], rtol=1e-4
  )
  logits, target = jnp.array([200.0, -200.0, 200.0, 0.0]), jnp.array([0.0, 1.0, 1.0, 0.5])
  value, gradient = jax.jit(jax.value_and_grad(losses.binary_cross_entropy_from_logits))(logits, target)
  np.testing.assert_allclose(value, (200 + 200 + 0 + np.log(2)) / 4, rtol=1e-6)
  np.testing.assert_allclose(gradient, [0.25, -0.25, 0, 0], atol=1e-7)


def test_dice_sums_over_all_devices_and_so_does_its_gradient():
  rng = np.random.default_rng(0)
  devices = jax.device_count()
  prediction = rng.random((devices, 2, 4, 4, 1), np.float32)
  # Faces of very different sizes: dice per device would average to another number.
  share = np.linspace(0, 1, devices).reshape(-1, 1, 1, 1, 1)
  target = (rng.random((devices, 2, 4, 4, 1)) < share).astype(np.float32)

  def loss(bias, prediction, target, axis_name=None):
    return losses.dice_loss(jax.nn.sigmoid(prediction + bias), target, axis_name=axis_name)

  def on_device(bias, prediction, target):
    value, gradient = jax.value_and_grad(loss)(bias, prediction, target, 'batch')
    return value, jax.lax.pmean(gradient, 'batch')

  values, gradients = jax.pmap(on_device, 'batch', in_axes=(None, 0, 0))(0.1, prediction, target)
  value, gradient = jax.jit(jax.value_and_grad(loss))(0.1, prediction, target)
  np.testing.assert_allclose(values, np.full(devices, value), rtol=1e-6)
  np.testing.assert_allclose(gradients, np.full(devices, gradient), rtol=1e-5)
  alone = np.mean([loss(0.1, p, t) for p, t in zip(prediction, target, strict=True)])
  assert devices > 1
  assert abs(alone - value) > 1e-2


def test_losses_are_float32_for_half_precision_input():
  half = jnp.full((2, 12, 12, 3), 0.3, jnp.bfloat16)
  for loss in (
    losses.kl_divergence, losses.binary_cross_entropy, losses.binary_cross_entropy_from_logits, losses.dice_loss,
    losses.l1_loss, losses.l2_loss, losses.ssim_loss,
  ):  # fmt: skip
    value = jax.eval_shape(loss, half, half)
    assert value.dtype == jnp.float32
    assert value.shape == ()


def test_ssim_loss_of_equal_pictures_is_one_and_passes_its_mask_on():
  a = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)
  mask = np.ones((2, 16, 16, 1), np.float32)
  loss = jax.jit(lambda b, mask: losses.ssim_loss(a, b, mask=mask))
  np.testing.assert_allclose(loss(a, mask), 1, atol=1e-6)
  np.testing.assert_allclose(loss(1 - a, 0 * mask), 1, atol=1e-6)
  assert loss(1 - a, mask) > 2


def test_l1_pulls_only_where_pictures_differ():
  a = np.zeros((1, 2, 2, 1), np.float32)
  b = a.copy()
  b[0, 0] = [[0.5], [-0.5]]
  gradient = jax.grad(losses.l1_loss)(jnp.asarray(b), a)
  np.testing.assert_allclose(gradient[0, ..., 0], [[0.25, -0.25], [0, 0]])
