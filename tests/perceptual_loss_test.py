import jax
import jax.numpy as jnp
import numpy as np

from jaxface import weights
from jaxface.models.resnet50_face import FaceResNet50
from jaxface.perceptual_loss import face_features, vgg_features


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
