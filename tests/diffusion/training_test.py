"""The losses of denoisers against stored numbers of the public code, by hand, and against another's distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxface.diffusion import process, training
from jaxface.diffusion.schedule import linear, respaced, scaled_linear
from jaxface.diffusion.variational import variational_bound
from jaxface.errors import UserError
from tests.golden import GOLDENS, load


def nhwc(array):
  return np.moveaxis(array, 1, -1)


@pytest.fixture(scope='module')
def golden():
  return load('scadm/losses')[2]


@pytest.mark.parametrize(('variant', 'distance', 'elbo'), [('default', 'l2', 0), ('elbo', 'l2', 1e-3), ('l1', 'l1', 0)])
def test_loss_matches_the_golden(golden, variant, distance, elbo):
  errors = training.row_errors(nhwc(golden['eps']), nhwc(golden['noise']), distance)
  simple, bound = (
    (training.loss_weights(name, scaled_linear())[golden['t']] * errors).mean() for name in ('simple', 'elbo')
  )
  np.testing.assert_allclose(simple, golden[f'{variant}_simple'], rtol=5e-5)
  np.testing.assert_allclose(bound, golden[f'{variant}_vlb'], rtol=5e-5)
  np.testing.assert_allclose(simple + elbo * bound, golden[f'{variant}_loss'], rtol=5e-5)


@pytest.mark.parametrize('kind', ['bce', 'l2'])
def test_attention_loss_matches_the_golden(golden, kind):
  scores = [golden[name].reshape(2, 2, *golden[name].shape[1:]) for name in ('sim_0', 'sim_1')]
  loss = jax.jit(lambda scores: training.attention_loss(scores, golden['labels'], kind))(scores)
  np.testing.assert_allclose(0.01 * loss, golden[f'attn_{kind}_attn'], rtol=5e-5)


def test_noise_is_added_as_in_the_golden(golden):
  x = process.add_noise(scaled_linear(), nhwc(golden['x_start']), nhwc(golden['noise']), golden['t'])
  np.testing.assert_allclose(x, nhwc(golden['x_noisy']), rtol=5e-5, atol=1e-5)


def test_averaging_matches_the_golden(golden):
  average = golden['ema_w'][0]
  for n, (weight, expected) in enumerate(zip(golden['ema_w'][1:], golden['ema_traj'], strict=True), 1):
    decay = training.ema_decay(jnp.int32(n))
    average = decay * average + (1 - decay) * weight
    np.testing.assert_allclose(average, expected, rtol=5e-5, atol=1e-6)
  np.testing.assert_allclose(training.ema_decay(10**6), 0.9999)


def test_posterior_mean_matches_the_golden():
  with np.load(GOLDENS / 'sdm' / 'unet.npz') as arrays:
    golden = dict(arrays)
  schedule = respaced(linear(), golden['timestep_map'])
  x, x0 = nhwc(golden['x']), nhwc(golden['guided_pred_xstart'])
  mean, _ = process.posterior(schedule, x0, x, golden['t_respaced'])
  np.testing.assert_allclose(mean, nhwc(golden['guided_mean']), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kind', process.KINDS)
def test_whatever_is_predicted_implies_the_noise(kind):
  schedule, t = scaled_linear(), jnp.array([0, 400, 999])
  x0, noise = np.random.default_rng(0).standard_normal((2, 3, 2, 2, 1)).astype(np.float32)
  x = process.add_noise(schedule, x0, noise, t)
  perfect = process.target(kind, schedule, x0, noise, t)
  np.testing.assert_allclose(process.eps_from(kind, schedule, x, perfect, t), noise, atol=2e-5)
  # x0 from eps divides by 0.012 at t = 999.
  np.testing.assert_allclose(process.x0_from_eps(schedule, x, noise, t), x0, atol=1e-4)
  np.testing.assert_array_equal(
    process.eps_from(kind, schedule, x[1:2], perfect[1:2], 400), process.eps_from(kind, schedule, x, perfect, t)[1:2]
  )


@pytest.mark.parametrize('weighting', ['min_snr', 'elbo'])
def test_weights_of_one_error_are_the_same_whatever_is_predicted(weighting):
  # One wrong picture, said in three ways.
  schedule, t = linear(), jnp.array([1, 300, 900])
  x0, noise, wrong = np.random.default_rng(1).standard_normal((3, 3, 2, 2, 1)).astype(np.float32)
  x = process.add_noise(schedule, x0, noise, t)
  wrong_noise = process.eps_from('x0', schedule, x, wrong, t)
  losses = []
  for kind in process.KINDS:
    output = process.target(kind, schedule, wrong, wrong_noise, t)
    errors = training.row_errors(output, process.target(kind, schedule, x0, noise, t))
    losses.append(training.loss_weights(weighting, schedule, kind)[t] * errors)
  np.testing.assert_allclose(losses[1], losses[0], rtol=2e-4)
  np.testing.assert_allclose(losses[2], losses[0], rtol=2e-4)


def test_min_snr_weights_by_hand():
  # Betas of signal-to-noise ratios 9, 1 and 1/9: shares 0.9, 0.5 and 0.1 of the variance are left.
  schedule = respaced(linear(), np.array([0]))
  schedule = type(schedule)(1 - np.array([0.9, 0.5 / 0.9, 0.1 / 0.5]))
  weights = {kind: training.loss_weights('min_snr', schedule, kind) for kind in process.KINDS}
  np.testing.assert_allclose(weights['eps'], [5 / 9, 1, 1])
  np.testing.assert_allclose(weights['x0'], [5, 1, 1 / 9])
  np.testing.assert_allclose(weights['v'], [5 / 10, 1 / 2, 1 / 10])
  np.testing.assert_allclose(training.loss_weights('min_snr', schedule, gamma=1.0), [1 / 9, 1, 1])
  np.testing.assert_array_equal(training.loss_weights('simple', schedule, 'v'), [1, 1, 1])


def bound_by_scipy(schedule, x0, x, prediction, t):
  """Bits per dimension of one row, in float64, from the definitions of the distributions."""
  a, a_prev, beta = schedule.alphas_cumprod[t], schedule.alphas_cumprod[t - 1] if t else 1.0, schedule.betas[t]

  def mean_given(x0):
    # x_{t-1} is N(sqrt(a_prev) x_0, 1 - a_prev) by x_0; x_t is sqrt(1 - beta) x_{t-1} with noise of variance beta.
    if t == 0:
      return x0
    precision = 1 / (1 - a_prev) + (1 - beta) / beta
    return (np.sqrt(a_prev) * x0 / (1 - a_prev) + np.sqrt(1 - beta) * x / beta) / precision

  first = schedule.posterior_variance[1]
  variance = 1 / (1 / (1 - a_prev) + (1 - beta) / beta) if t else first
  learned = np.exp(prediction.fraction * np.log(beta) + (1 - prediction.fraction) * np.log(variance))
  mean = mean_given((x - np.sqrt(1 - a) * prediction.eps) / np.sqrt(a))
  if t:
    divergence = np.log(np.sqrt(learned / variance)) + (variance + (mean_given(x0) - mean) ** 2) / (2 * learned) - 0.5
    return divergence.mean() / np.log(2)
  normal = stats.norm(mean, np.sqrt(learned))
  above = np.where(x0 > 0.999, np.inf, x0 + 1 / 255)
  below = np.where(x0 < -0.999, -np.inf, x0 - 1 / 255)
  return -np.log2(normal.cdf(above) - normal.cdf(below)).mean()


def test_variational_bound_is_that_of_the_distributions():
  schedule, t = linear(), np.array([0, 1, 20])
  rng = np.random.default_rng(2)
  x0 = (rng.integers(0, 256, (3, 4, 4, 2)) / 127.5 - 1).astype(np.float32)
  x0[0, 0] = [[-1, 1]] * 4
  noise = rng.standard_normal(x0.shape).astype(np.float32)
  x = np.asarray(process.add_noise(schedule, x0, noise, t))
  eps = noise + 0.5 * rng.standard_normal(x0.shape).astype(np.float32)
  prediction = process.Prediction(eps, rng.uniform(-0.2, 1.2, x0.shape).astype(np.float32))
  rows = [
    bound_by_scipy(schedule, *(array[i].astype(np.float64) for array in (x0, x)), process.Prediction(*p), t[i])
    for i, p in enumerate(zip(prediction.eps, prediction.fraction.astype(np.float64), strict=True))
  ]
  bound = jax.jit(lambda prediction: variational_bound(schedule, x0, x, prediction, t))
  np.testing.assert_allclose(bound(prediction), rows, rtol=1e-3)

  gradient = jax.jit(jax.grad(lambda prediction: bound(prediction).sum()))(prediction)
  assert not gradient.eps.any()
  assert np.isfinite(gradient.fraction).all()
  assert (jnp.abs(gradient.fraction).max((1, 2, 3)) > 1e-4).all()


def test_nothing_is_lost_by_the_posterior_itself():
  schedule, t = linear(), np.array([5, 20])
  x0, noise = np.random.default_rng(3).uniform(-1, 1, (2, 2, 2, 2, 1)).astype(np.float32)
  x = process.add_noise(schedule, x0, noise, t)

  @jax.jit
  def bound(output):
    return variational_bound(schedule, x0, x, process.split_prediction(output), t)

  # The second half of the channels says the variance: -1 is the posterior's, 1 beta's.
  np.testing.assert_allclose(bound(np.concatenate([noise, -np.ones_like(noise)], -1)), 0, atol=1e-5)
  assert (bound(np.concatenate([noise, np.ones_like(noise)], -1)) > 1e-4).all()


def test_unknown_names_are_listed():
  with pytest.raises(UserError, match="unknown prediction 'noise'; choose from eps, x0, v"):
    training.loss_weights('simple', linear(), 'noise')
  with pytest.raises(UserError, match="unknown distance 'huber'; choose from l2, l1"):
    training.row_errors(np.zeros((1, 2)), np.zeros((1, 2)), 'huber')
  with pytest.raises(UserError, match="unknown weighting 'snr'; choose from simple, min_snr, elbo"):
    training.loss_weights('snr', linear())
  with pytest.raises(UserError, match='choose from bce, l2'):
    training.attention_loss([], np.zeros((1, 4, 4), np.int32), 'l1')
