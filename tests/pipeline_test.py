"""Whole systems against stored numbers of the public code: from a checkpoint's tensors to pictures and losses."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxface import convert
from jaxface.diffusion import process, samplers
from jaxface.diffusion.schedule import linear, respaced, scaled_linear
from jaxface.models.scadm import Conditioning
from jaxface.state import TrainState
from jaxface.tasks.diffusion import MASK_ONLY, Objective, Sampling
from jaxface.tasks.first_stage import FirstStage
from jaxface.tasks.scadm import ScaDmTask
from jaxface.tasks.sdm import SdmTask
from tests.golden import load, nchw, nhwc

# Latents are far from 1; `draw` clips what it decodes.
_RANGE = 8


def _closely(about, ours, theirs, name):
  tolerance = about['tolerance']
  np.testing.assert_allclose(ours, theirs, rtol=tolerance['relative'], atol=tolerance['absolute'], err_msg=name)


class _Latents(ScaDmTask):
  """Draws latents instead of pictures, -_RANGE to _RANGE as 0 to 1."""

  def decode(self, state, x0):
    return x0 / _RANGE

  def latents(self, state, tokens, label, noise, **changes):
    """[B, 3, h, w], drawn after styles [B, K, D] with these changes of the sampling."""

    @jax.jit
    def run(state, given, noise):
      keys = jax.random.split(jax.random.key(0), len(noise))
      return self.draw(state, given, keys, sampling=dataclasses.replace(self.sampling, **changes), noise=noise)

    return nchw(_RANGE * (2 * run(state, Conditioning(tokens, label), noise) - 1))


@pytest.fixture(scope='module')
def scadm():
  """The golden's description and arrays, the task, a state with the checkpoint's parameters, and styles.

  The styles are those of the picture, of the reference, and of an empty picture.
  """
  about, tensors, arrays = load('scadm/pipeline')
  config = about['config']
  modules, variables = convert.from_reference('scadm', tensors, head_channels=config['unet']['num_head_channels'])
  params = dict(variables['params'])
  frozen = {'first_stage': params.pop('first_stage')}
  schedule = scaled_linear(config['linear_start'], config['linear_end'], config['timesteps'])
  task = _Latents(
    unet=modules.unet,
    schedule=schedule,
    objective=Objective(),
    sampling=Sampling(samplers.ddim(schedule, config['S']), guidance=config['scale']),
    optimizer=optax.identity(),
    image_size=arrays['x'].shape[-1],
    style_encoder=modules.style,
    first_stage=FirstStage(modules.first_stage),
  )
  state = TrainState(jnp.zeros((), jnp.int32), params, None, None, frozen=frozen)
  pictures = nhwc(np.concatenate([arrays['x'], arrays['x_reference'], np.zeros_like(arrays['x'])]))
  label = np.concatenate([arrays['labels'], arrays['labels_reference'], arrays['labels']])
  return about, arrays, task, state, jax.jit(task.style)(params, pictures, label)


def _swapped(about, styles):
  tokens = np.array(styles[:1])
  tokens[:, about['config']['swap']] = styles[1:2, about['config']['swap']]
  return tokens


def test_latent_and_styles_match_the_golden(scadm):
  about, arrays, task, state, styles = scadm
  latent = jax.jit(task.encode)(state, nhwc(arrays['x']))
  assert latent.shape[1:] == task.x_shape
  _closely(about, nchw(latent), arrays['latent'], 'latent')
  few = slice(None, None, about['config']['sub_style'])
  _closely(about, styles[:1, :, few], arrays['style'], 'style')
  _closely(about, _swapped(about, styles)[..., few], arrays['style_swapped'], 'style_swapped')


def test_losses_with_a_style_and_with_none_match_the_golden(scadm):
  about, arrays, task, state, styles = scadm
  terms = jax.jit(task.terms)
  rows = {'x0': nhwc(arrays['latent']), 'noise': nhwc(arrays['noise']), 't': arrays['t']}
  for name, tokens in (('training_loss', styles[:1]), ('training_loss_discarded', styles[2:])):
    found = terms(state.params, rows, Conditioning(tokens, arrays['labels']))
    assert found.keys() == {'denoising'}
    _closely(about, found['denoising'], arrays[name], name)


def test_samples_without_guidance_match_the_golden(scadm):
  about, arrays, task, state, styles = scadm
  # Nothing is worked out before the steps: the other way to the same numbers.
  latent = task.latents(state, styles[:1], arrays['labels'], nhwc(arrays['x_T']), guidance=1, cached=False)
  _closely(about, latent, arrays['plain_latent'], 'plain')


def test_guided_samples_with_own_and_with_swapped_styles_match_the_golden(scadm):
  about, arrays, task, state, styles = scadm
  tokens = np.concatenate([styles[:1], _swapped(about, styles)])
  label, noise = (np.repeat(array, 2, 0) for array in (arrays['labels'], nhwc(arrays['x_T'])))
  guided, swapped = task.latents(state, tokens, label, noise)
  _closely(about, guided, arrays['guided_latent'][0], 'guided')
  _closely(about, swapped, arrays['swapped_latent'][0], 'swapped')


def test_pictures_of_the_samples_match_the_golden(scadm):
  about, arrays, task, state, _ = scadm
  runs = about['config']['runs']
  # Of the stored ones: rounding in ours may lead to another of two entries that are equally near.
  latents = nhwc(np.concatenate([arrays[f'{run}_latent'] for run in runs]))

  @jax.jit
  def picture(state, latents):
    quantised = task.first_stage.model.apply({'params': state.frozen['first_stage']}, latents, method='quantise')
    return quantised.indices, jnp.clip((ScaDmTask.decode(task, state, latents) + 1) / 2, 0, 1)

  for run, indices, image in zip(runs, *picture(state, latents), strict=True):
    np.testing.assert_array_equal(indices, arrays[f'{run}_indices'][0], err_msg=run)
    _closely(about, image.transpose(2, 0, 1), arrays[f'{run}_image'][0], run)


class _Compiled:
  """A network whose calls are one compiled program, for all tests."""

  def __init__(self, module):
    self.apply = jax.jit(module.apply)


@pytest.fixture(scope='module')
def sdm():
  """The golden's description and arrays, with pictures NHWC, the task, and its parameters."""
  about, tensors, arrays = load('sdm/unet')
  arrays |= {name: nhwc(array) for name, array in arrays.items() if array.ndim == 4}
  module, variables = convert.from_reference(
    'sdm_unet', tensors, head_channels=about['config']['module']['num_head_channels']
  )
  schedule = linear()
  task = SdmTask(
    unet=_Compiled(module),
    schedule=schedule,
    objective=Objective(),
    sampling=Sampling(samplers.ddpm(schedule, 20, variance='learned'), guidance=about['config']['s'], clip=True),
    optimizer=optax.identity(),
    image_size=32,
  )
  return about, arrays, task, {'unet': variables['params']}


def test_losses_of_sdm_match_the_golden(sdm):
  about, arrays, task, params = sdm
  t, label = arrays['t'], arrays['labels']
  rows = {'x0': arrays['x_start'], 'noise': arrays['noise'], 't': t, 'label': label, 'drop': np.zeros(2, bool)}
  given = task.given_rows(params, rows)
  losses = jax.jit(task.terms)
  # The mean over twice the same row is the row's.
  for i in range(2):
    twice = functools.partial(np.repeat, repeats=2, axis=0)
    terms = losses(params, {name: twice(row[i : i + 1]) for name, row in rows.items()}, twice(given[i : i + 1]))
    _closely(about, terms['denoising'], arrays['train_mse'][i], 'train_mse')
    _closely(about, terms['variance'], arrays['train_vb'][i], 'train_vb')
    _closely(about, sum(terms.values()), arrays['train_loss'][i], 'train_loss')


def test_a_guided_step_of_sdm_matches_the_golden(sdm):
  about, arrays, task, params = sdm
  x, step = arrays['x'], arrays['t_respaced']
  t = arrays['timestep_map'][step]
  conditional, unconditional = (
    task.learned(task.apply(params, x, t, given))
    for given in (task.modes(None, x, arrays['labels'])[MASK_ONLY], jnp.repeat(task.nothing(), 2, 0))
  )
  denoise = samplers.guided(lambda *_: conditional, lambda *_: unconditional, task.sampling.guidance)
  fraction = conditional.fraction
  log_variance = process.learned_log_variance(respaced(task.schedule, arrays['timestep_map']), fraction, step)
  _closely(about, log_variance, arrays['guided_log_variance'], 'guided_log_variance')
  for i in range(2):
    # The plan goes from much noise to little.
    place = len(task.sampling.plan.timesteps) - 1 - step[i]
    plan = samplers.Plan(*(values[place : place + 1] for values in task.sampling.plan))
    assert plan.timesteps == t[i]
    run = functools.partial(samplers.trajectory, plan, denoise, x, clip=task.sampling.clip)
    still, moved = (run(noise=np.full((1, *x.shape), level, np.float32)) for level in (0, 1))
    _closely(about, still.x0[0, i], arrays['guided_pred_xstart'][i], 'guided_pred_xstart')
    _closely(about, still.x[0, i], arrays['guided_mean'][i], 'guided_mean')
    # The last step draws no noise.
    deviation = np.exp(arrays['guided_log_variance'][i] / 2) if step[i] else 0
    _closely(about, (moved.x - still.x)[0, i], np.broadcast_to(deviation, x[i].shape), 'deviation')
