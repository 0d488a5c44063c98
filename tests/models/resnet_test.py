import jax
import numpy as np

from jaxface.models import resnet


def test_no_gpu_gets_a_product_of_every_other_pixel():
  random = np.random.default_rng(0)
  x = random.normal(size=(2, 7, 6, 4)).astype(np.float32)
  kernel = random.normal(size=(1, 1, 4, 5)).astype(np.float32)

  def gradients(convolve):
    return jax.jit(jax.value_and_grad(lambda x, kernel: (convolve(x, kernel, 2) ** 2).sum(), (0, 1)))

  ours = gradients(resnet.convolve)
  traced = ours.trace(x, kernel)
  programs = {name: traced.lower(lowering_platforms=(name,)).as_text() for name in ('cpu', 'cuda', 'tpu')}
  assert {name: 'dot_general' in text for name, text in programs.items()} == {'cpu': True, 'cuda': False, 'tpu': True}
  by_window = gradients(lambda x, kernel, stride: resnet._by_window(stride, x, kernel))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), ours(x, kernel), by_window(x, kernel))
