"""BeautyGAN's training step is the public code's."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxface import labels
from jaxface.augment import Framing
from jaxface.convert import from_reference, to_reference
from jaxface.perceptual_loss import PerceptualLoss
from jaxface.state import TrainState, first_state
from jaxface.tasks import make_task
from jaxface.tasks.beautygan import BeautyGanTask, LossWeights
from jaxface.tasks.makeup import Faces, region_loss
from tests.golden import load, nhwc
from tests.smoke import experiment


def _of(state, prefix):
  return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


class GoldenTask(BeautyGanTask):
  """Takes a step on faces as the golden has them, already framed, and eyes as large as at 256 pixels."""

  def sides(self, batch, key):
    return batch['b'], batch['a']


@pytest.fixture(scope='module')
def golden():
  _, tensors, arrays = load('beautygan/train_step')
  generator, variables = from_reference('beautygan_generator', _of(tensors, 'G.'))
  params, spectral = {'generator': variables['params']}, {}
  for side in 'ab':
    discriminator, found = from_reference('beautygan_discriminator', _of(tensors, f'D_{side.upper()}.'))
    params[f'discriminator_{side}'], spectral[side] = found['params'], found['spectral']
  vgg, frozen = from_reference('vgg19', _of(tensors, 'VGG.') or _of(tensors, 'vgg.'))
  task = GoldenTask(
    framing=Framing(64),
    image_size=64,
    generator=generator,
    discriminator=discriminator,
    optimizer=optax.adam(2e-4, b1=0.5),
    perceptual=PerceptualLoss(vgg, jnp.square),
    eye_margin=10 / 64,
  )
  order = labels.lookup_table('makeup_transfer')
  faces = lambda picture, label: Faces(
    nhwc(arrays[picture]), jnp.asarray(order[arrays[label][:, 0].astype(int)], jnp.uint8)
  )
  batch = {'a': faces('org_a', 'labels_a'), 'b': faces('ref_b', 'labels_b')}
  opt_state = jax.jit(lambda params: {name: task.optimizer.init(network) for name, network in params.items()})(params)
  state = first_state(params, spectral, opt_state).replace(frozen=frozen)
  after, metrics = jax.jit(task.train_step)(state, batch, jax.random.key(0))
  return arrays, task, state, after, metrics


def test_terms_are_those_of_the_public_code(golden):
  arrays, _, _, _, metrics = golden
  total = lambda *names: sum(float(arrays[f'raw/{name}']) for name in names)
  expected = {
    'adversarial': total('adv_a', 'adv_b'),
    'cycle': 5 * total('rec_a', 'rec_b'),
    'perceptual': 0.025 * total('vgg_a', 'vgg_b'),
    'identity': 2.5 * total('idt_a1', 'idt_a2', 'idt_b1', 'idt_b2'),
    'discriminator_a': arrays['d_a_total'],
    'discriminator_b': arrays['d_b_total'],
  }
  for name, value in expected.items():
    np.testing.assert_allclose(metrics[name], value, rtol=5e-4, err_msg=name)
  histograms = {
    'lips': total('his_lip_a', 'his_lip_b'),
    'skin': 0.1 * total('his_skin_a', 'his_skin_b'),
    'eyes': total('his_eye_left_a', 'his_eye_left_b', 'his_eye_right_a', 'his_eye_right_b'),
  }
  for name, value in histograms.items():
    np.testing.assert_allclose(metrics[name], value, rtol=3e-2, err_msg=name)
  np.testing.assert_allclose(metrics['loss'], arrays['g_total'], rtol=2e-3)


def test_all_three_networks_move_as_in_the_public_code(golden):
  arrays, _, before, after, _ = golden
  # Adam's first step hides the size of a gradient; its first moment is half of it.
  moments = {name: state[0].mu for name, state in after.opt_state.items()}
  spectral = {f'discriminator_{side}': after.model_state[side] for side in 'ab'}
  systems = {
    'G.': ('generator', 'beautygan_generator'),
    'D_A.': ('discriminator_a', 'beautygan_discriminator'),
    'D_B.': ('discriminator_b', 'beautygan_discriminator'),
  }
  checked = 0
  for public, (name, system) in systems.items():
    with_vectors = lambda params, name=name: (
      {'params': params} | ({'spectral': spectral[name]} if name in spectral else {})
    )
    old, new = (to_reference(system, with_vectors(state.params[name])) for state in (before, after))
    gradient = to_reference(system, with_vectors(jax.tree.map(lambda mu: 2 * mu, moments[name])))
    for key, expected in arrays.items():
      what, _, tensor = key.partition('/')
      if not tensor.startswith(public):
        continue
      tensor = tensor.removeprefix(public)
      checked += 1
      if what == 'after':
        assert (np.abs(new[tensor] - old[tensor] - expected) < 5e-6).mean() >= 0.95, key
      else:
        assert np.abs(gradient[tensor] - expected).max() <= 1e-2 * np.abs(expected).max(), key
  assert checked == 6


def test_levels_mix_pixels(golden):
  _, task, state, _, _ = golden
  key = jax.random.key(1)
  target, reference = (jax.random.uniform(k, (1, 64, 64, 3), minval=-1) for k in jax.random.split(key))
  label = jnp.zeros((1, 64, 64), jnp.uint8)
  light = TrainState(state.step, {'generator': state.params['generator']}, None, None)
  wear = functools.partial(jax.jit(task.wear), light, Faces(target, label), reference)
  np.testing.assert_allclose(wear(jnp.zeros(1)), target, atol=1e-6)
  half, whole = wear(jnp.full(1, 0.5)), wear(jnp.ones(1))
  np.testing.assert_allclose(half, (target + whole) / 2, atol=1e-6)


@pytest.fixture(scope='module')
def tiny():
  return make_task(experiment('beautygan', 'code'))


def _pair(rows):
  """Targets and references of noise, with both eyes, lips and skin; the references' lips lie higher."""
  label = np.full((rows, 32, 32), labels.index('skin'), np.uint8)
  label[:, 8:10, 6:9], label[:, 8:10, 20:23] = labels.index('r_eye'), labels.index('l_eye')
  target, reference, truth, made = jax.random.uniform(jax.random.key(0), (4, rows, 32, 32, 3), minval=-1)
  lips = [label.copy(), label.copy()]
  lips[0][:, 22:25, 12:20] = lips[1][:, 16:18, 12:18] = labels.index('u_lip')
  return Faces(target, jnp.asarray(lips[0]), truth=truth), Faces(reference, jnp.asarray(lips[1])), made


def test_a_closed_eye_takes_the_eyes_from_its_pair_only(tiny):
  target, reference, made = _pair(2)
  run = jax.jit(tiny._histograms)
  first = lambda faces: Faces(faces.image[:1], faces.label[:1])
  open_pair = run(made[:1], made[:1], first(target), first(reference))['eyes']
  assert open_pair > 0
  for side in (0, 1):
    faces = [target, reference]
    label = faces[side].label
    faces[side] = faces[side]._replace(label=label.at[1].set(jnp.where(label[1] == labels.index('l_eye'), 1, label[1])))
    found = run(made, made, *(Faces(*one[:2]) for one in faces))
    np.testing.assert_allclose(found['eyes'], open_pair / 2, rtol=1e-5)
    assert found['skin'] > 0


def test_the_true_result_is_that_of_the_made_up_target(tiny):
  task = dataclasses.replace(tiny, paired=2.0, weights=LossWeights(*[0.0] * 7))
  target, reference, _ = _pair(1)
  params = jax.jit(task.init)(jax.random.key(0)).params['generator']
  loss, _, terms = jax.jit(lambda: task.generator_loss(params, None, None, None, target=target, reference=reference))()
  made_up, _ = jax.jit(lambda: task._generate(params, target.image, reference.image))()
  assert terms.keys() == {'paired'}
  np.testing.assert_allclose(loss, 2 * region_loss(target.truth, made_up, target.label), rtol=1e-5)


def test_the_configurations_weights_are_the_losses():
  config = experiment('beautygan', 'code')
  config.loss.weights.lips, config.loss.weights.cycle = 3.0, 7.0
  weights = make_task(config).weights
  assert (weights.lips, weights.cycle, weights.skin) == (3, 7, config.loss.weights.skin)
