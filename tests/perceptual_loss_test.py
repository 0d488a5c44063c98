import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxface import weights
from jaxface.models.resnet50_face import FaceResNet50
from jaxface.perceptual_loss import PerceptualLoss, face_features, vgg_features


def test_the_face_network_measures_in_float32_and_trains_as_the_backend_multiplies(monkeypatch):
  network = weights.load('untrained:resnet50_face')
  assert network.module == FaceResNet50(pool='global', precision='highest')
  monkeypatch.setattr(weights, 'load', lambda name: network)
  loss, variables = face_features('vggface2', 256)
  assert loss.module == FaceResNet50()
  assert variables is network.variables


def test_vgg_in_bfloat16_compares_as_in_float32():
  made, true = jax.random.uniform(jax.random.key(0), (2, 2, 32, 32, 3), minval=-1)

  def value_and_gradient(dtype):
    loss, variables = vgg_features('random', dtype)
    features = jax.eval_shape(loss.module.apply, variables, made)
    assert {each.dtype for each in features} == {jnp.dtype(dtype)}
    return jax.jit(jax.value_and_grad(lambda made: loss(variables, made, true)))(made)

  (value, gradient), (expected, exact) = value_and_gradient(jnp.bfloat16), value_and_gradient(jnp.float32)
  assert value.dtype == gradient.dtype == jnp.float32
  np.testing.assert_allclose(value, expected, rtol=0.01)
  assert jnp.vdot(gradient, exact) > 0.98 * jnp.linalg.norm(gradient) * jnp.linalg.norm(exact)


class _Maps(nn.Module):
  """Two maps of features: the picture itself, and thrice its first row."""

  def __call__(self, image):
    return image, 3 * image[:, :1]


def test_means_of_all_maps_are_summed_and_the_true_pictures_have_no_gradient():
  made, true = jax.random.uniform(jax.random.key(1), (2, 2, 4, 5, 3), minval=-1)
  for distance in (jnp.abs, jnp.square):
    loss = PerceptualLoss(_Maps(), distance)
    expected = distance(made - true).mean() + distance(3 * (made - true)[:, :1]).mean()
    np.testing.assert_allclose(loss({}, made, true), expected, rtol=1e-5)
    of_made, of_true = jax.grad(loss, argnums=(1, 2))({}, made, true)
    assert jnp.abs(of_made).max() > 0
    np.testing.assert_array_equal(of_true, jnp.zeros_like(true))


def test_faces_are_compared_by_l1_and_pictures_by_squares():
  half = jnp.array([-0.5, 0.25])
  np.testing.assert_allclose(face_features('random', 32)[0].distance(half), [0.5, 0.25])
  for name in ('random', 'untrained:vgg19'):
    np.testing.assert_allclose(vgg_features(name)[0].distance(half), [0.25, 0.0625])
