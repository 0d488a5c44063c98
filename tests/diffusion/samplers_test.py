"""Samplers against stored numbers of the public code, and where the answer is known: on a Gaussian.

Of x_0 ~ N(m, s^2) the best guess of the noise in x_t is known, and so is the map by which the noiseless samplers, done
in infinitely many steps, take x_T to x_0: x_t stays as many standard deviations from its mean.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.diffusion import samplers
from jaxface.diffusion.process import Prediction
from jaxface.diffusion.schedule import linear, scaled_linear
from jaxface.errors import UserError
from tests.golden import load

MEAN, STD = 0.4, 0.25


def nhwc(array):
  return np.moveaxis(array, -3, -1)


def best_guess(schedule):
  """E[noise | x_t] for pictures from N(MEAN, STD^2)."""
  a = jnp.asarray(schedule.alphas_cumprod, jnp.float32)

  def denoise(x, time):
    share = a[time].reshape(-1, *(1,) * (x.ndim - 1))
    return jnp.sqrt(1 - share) * (x - jnp.sqrt(share) * MEAN) / (share * STD**2 + 1 - share)

  return denoise


def exact(schedule, x, *, first, last):
  """Where the noiseless process takes x from timestep `first` to `last`, or to x_0 itself for None."""

  def moments(t):
    a = 1.0 if t is None else schedule.alphas_cumprod[t]
    return np.sqrt(a) * MEAN, np.sqrt(a * STD**2 + 1 - a)

  (mean, std), (last_mean, last_std) = moments(first), moments(last)
  return last_mean + last_std * (np.asarray(x, np.float64) - mean) / std


@functools.cache
def noise_and_keys():
  keys = jax.random.split(jax.random.key(0), 100)
  return jax.jit(lambda keys: samplers.draw_noise(keys, (25,)))(keys), keys


def sampled(plan, denoise, **how):
  x, keys = noise_and_keys()
  return jax.jit(lambda x, keys: samplers.sample(plan, denoise, x, keys=keys, **how))(x, keys)


@pytest.mark.parametrize('run', ['plain', 'guided', 'eta1'])
def test_ddim_matches_the_golden(run):
  about, _, golden = load('scadm/ddim')
  settings = about['config']['runs'][run]
  condition = nhwc(golden['context'])

  def conditional(x, time):
    return unconditional(x, time) + condition

  def unconditional(x, time):
    return 0.1 * x + jnp.sin(time.reshape(-1, 1, 1, 1) / 100)

  plan = samplers.ddim(scaled_linear(), 10, eta=settings['eta'])
  np.testing.assert_array_equal(plan.timesteps, golden[f'{run}_steps'])
  denoise = samplers.guided(conditional, unconditional, settings['scale'])
  x, noise = nhwc(golden['x_T']), nhwc(golden['step_noise'])
  steps = jax.jit(lambda x: samplers.trajectory(plan, denoise, x, noise=noise))(x)
  for name in ('x', 'x0'):
    np.testing.assert_allclose(getattr(steps, name), nhwc(golden[f'{run}_{name}']), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize('steps', [50, 200])
def test_ddim_coefficients_match_the_golden(steps):
  _, _, golden = load('scadm/schedule')
  for eta in (0, 1):
    plan = samplers.ddim(scaled_linear(), steps, eta=eta)
    np.testing.assert_array_equal(plan.timesteps[::-1], golden[f'timesteps_{steps}'])
    np.testing.assert_allclose(plan.signal[::-1] ** 2, golden[f'alphas_{steps}'], rtol=2e-5)
    np.testing.assert_allclose(plan.scale[::-1], golden[f'sigmas_{steps}_eta{eta}'], rtol=2e-5, atol=1e-6)


def test_noiseless_samplers_follow_the_exact_map():
  schedule = scaled_linear()
  x, _ = noise_and_keys()
  denoise = best_guess(schedule)
  ends = exact(schedule, x, first=999, last=0)
  few, many = (np.abs(sampled(samplers.ddim(schedule, n), denoise) - ends).max() for n in (20, None))
  # Measured: 0.20 and 0.008, and 0.004 of the solver, which ends at x_0 itself.
  assert many < 0.01
  assert 0.1 < few < 0.3
  solved = np.abs(sampled(samplers.dpm_solver(schedule, 20), denoise) - exact(schedule, x, first=999, last=None)).max()
  assert solved < 0.008


def test_dpm_solver_is_of_second_order():
  schedule = linear()
  x, _ = noise_and_keys()
  denoise = best_guess(schedule)
  last = exact(schedule, x, first=999, last=0)
  errors = []
  for steps in (20, 40, 80):
    plan = samplers.dpm_solver(schedule, steps)
    # Before the last step, which goes from t = 0 to the picture.
    plan = samplers.Plan(*(values[:-1] for values in plan))
    errors.append(np.abs(sampled(plan, denoise) - last).max())
  assert errors[0] / errors[1] > 3
  assert errors[1] / errors[2] > 3


def test_ancestral_samples_have_the_pictures_mean_and_deviation():
  # 2,500 numbers: standard errors 0.005 and 0.0035.
  pictures = sampled(samplers.ddpm(scaled_linear()), best_guess(scaled_linear()))
  np.testing.assert_allclose(pictures.mean(), MEAN, atol=0.015)
  np.testing.assert_allclose(pictures.std(), STD, atol=0.012)


def test_few_ancestral_steps_do_with_the_right_variance():
  # The variance of x_{t-1} given x_t, all of it, is the posterior's and what is not known of x_0 (Bao et al. 2022).
  schedule = linear()
  plan = samplers.ddpm(schedule, 10, variance='learned')
  a = plan.signal**2
  unknown = STD**2 * (1 - a) / (a * STD**2 + 1 - a)
  drawn = plan.scale[:-1]
  log_ratio = 0.5 * np.log1p(unknown[:-1] * (plan.from_x0[:-1] / drawn) ** 2)
  fraction = np.append(log_ratio / plan.log_range[:-1], 0).astype(np.float32)
  guess = best_guess(schedule)

  def denoise(x, time):
    eps = guess(x, time['t'])
    return Prediction(eps, jnp.broadcast_to(time['fraction'], eps.shape))

  pictures = sampled(plan, denoise, times={'t': plan.timesteps, 'fraction': fraction})
  np.testing.assert_allclose(pictures.mean(), MEAN, atol=0.015)
  np.testing.assert_allclose(pictures.std(), STD, atol=0.01)
  assert sampled(samplers.ddpm(schedule, 10), guess).std() < STD - 0.05


def test_ddim_with_eta_1_is_ddpm():
  schedule = linear()
  noisy, ancestral = samplers.ddim(schedule, eta=1.0), samplers.ddpm(schedule)
  # The last step apart, which DDIM leaves out.
  for name in ('timesteps', 'signal', 'sigma', 'from_x', 'from_x0', 'scale'):
    np.testing.assert_allclose(getattr(noisy, name)[:-1], getattr(ancestral, name)[:-1], rtol=1e-9, err_msg=name)


def test_variances_of_ddpm():
  schedule = linear()
  small, large, learned = (samplers.ddpm(schedule, variance=name) for name in samplers.VARIANCES)
  for plan in (small, large, learned):
    assert plan.scale[-1] == 0
    np.testing.assert_array_equal(plan.timesteps, np.arange(1000)[::-1])
  np.testing.assert_allclose(small.scale[:-1] ** 2, schedule.posterior_variance[:0:-1], rtol=1e-6)
  np.testing.assert_allclose(large.scale[:-1] ** 2, schedule.betas[:0:-1], rtol=1e-6)
  # A fraction of 0 is the posterior's variance, 1 beta's.
  np.testing.assert_array_equal(learned.scale, small.scale)
  np.testing.assert_allclose(learned.scale * np.exp(learned.log_range), large.scale, rtol=1e-6)


def test_learned_variance_scales_the_noise():
  plan = samplers.ddpm(linear(), 4, variance='learned')
  fixed = samplers.ddpm(linear(), 4)
  x = jnp.zeros((2, 3))
  noise = jnp.ones((4, 2, 3))
  fraction = jnp.stack([jnp.full(3, 0.0), jnp.full(3, 0.7)])

  def predict(x, time):
    del time
    return Prediction(jnp.zeros_like(x), fraction)

  learned = samplers.trajectory(plan, predict, x, noise=noise).x[0]
  plain = samplers.trajectory(fixed, lambda x, time: jnp.zeros_like(x), x, noise=noise).x[0]
  np.testing.assert_allclose(learned[0], plain[0], rtol=1e-6)
  np.testing.assert_allclose(learned[1], plain[1] * np.exp(0.7 * plan.log_range[0]), rtol=1e-6)
  # A sampler without learned variance takes no notice of the fraction.
  np.testing.assert_array_equal(samplers.trajectory(fixed, predict, x, noise=noise).x[0], plain)


def test_guidance_keeps_the_conditional_variance():
  def network(eps, fraction):
    return lambda x, time: Prediction(jnp.full_like(x, eps), jnp.full_like(x, fraction))

  asked = samplers.guided(network(1.0, 0.2), network(0.5, 0.9), 3.0)(jnp.zeros((1, 2)), None)
  np.testing.assert_allclose(asked.eps, 2.0)
  np.testing.assert_allclose(asked.fraction, 0.2)
  conditional = network(1.0, 0.2)
  assert samplers.guided(conditional, network(0.5, 0.9), 1) is conditional


def test_clipping_holds_the_picture():
  for plan in (samplers.ddim(linear(), 5), samplers.ddpm(linear(), 5)):
    x = jnp.full((1, 2), 3.0)
    noise = jnp.zeros((5, 1, 2))
    steps = samplers.trajectory(plan, lambda x, time: jnp.zeros_like(x), x, noise=noise, clip=True)
    assert np.abs(steps.x0).max() <= 1
    free = samplers.trajectory(plan, lambda x, time: jnp.zeros_like(x), x, noise=noise)
    assert np.abs(free.x0).max() > 1
  # DDIM's noise is then what is left of x beside the clipped picture.
  plan = samplers.ddim(linear(), 5)
  first = samplers.trajectory(plan, lambda x, time: jnp.zeros_like(x), x, clip=True)
  eps = (3.0 - plan.signal[0]) / plan.sigma[0]
  np.testing.assert_allclose(first.x[0], plan.signal[1] + plan.sigma[1] * eps, rtol=1e-5)


def test_a_row_does_not_depend_on_its_neighbours():
  plan = samplers.ddpm(scaled_linear(), 6)
  denoise = best_guess(scaled_linear())

  @jax.jit
  def draw(keys):
    return samplers.sample(plan, denoise, samplers.draw_noise(keys, (3,)), keys=keys)

  keys = jax.random.split(jax.random.key(1), 8)
  pictures = draw(keys)
  np.testing.assert_array_equal(draw(keys[::-1]), pictures[::-1])
  mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  spread = draw(jax.device_put(keys, jax.NamedSharding(mesh, jax.P('data'))))
  assert len(spread.sharding.device_set) == 8
  np.testing.assert_allclose(spread, pictures, rtol=1e-6, atol=1e-6)
  # Noise of its own in every step, and another with every key.
  assert len({float(value) for i in range(6) for value in samplers.draw_noise(keys, (3,), i).ravel()}) == 6 * 8 * 3


def test_no_step_draws_the_noise_that_the_picture_starts_from():
  plan = samplers.ddpm(scaled_linear(), 3)
  keys = jax.random.split(jax.random.key(2), 4)
  x = samplers.draw_noise(keys, (5,))
  noise = jnp.stack([samplers.draw_noise(keys, (5,), i) for i in (1, 2, 3)])
  drawn = lambda **how: samplers.sample(plan, lambda x, time: 0.5 * x, x, **how)
  np.testing.assert_allclose(drawn(keys=keys), drawn(noise=noise), rtol=1e-5)


def test_times_reach_the_network_row_by_row_without_recompiling():
  schedule = scaled_linear()
  plan = samplers.ddim(schedule, 5)
  traces = []

  @jax.jit
  def draw(factor, x):
    traces.append(None)
    times = {'factor': factor * jnp.asarray(plan.timesteps, jnp.float32), 't': plan.timesteps}

    def denoise(x, time):
      assert time['factor'].shape == time['t'].shape == ()
      return x * time['factor'] / 1000

    return samplers.trajectory(plan, denoise, x, times=times)

  x = jnp.ones((2, 3))
  asked = draw(0.5, x)
  expected = samplers.sample(plan, lambda x, time: x * (0.5 * time[0] / 1000), x)
  np.testing.assert_allclose(asked.x[-1], expected, rtol=1e-5)
  draw(0.25, x + 1)
  assert len(traces) == 1


def test_ddim_stays_within_the_schedule_whatever_the_steps():
  schedule = scaled_linear()
  for steps in range(2, 501):
    timesteps = samplers.ddim(schedule, steps).timesteps
    assert timesteps.max() < 1000
    assert (np.diff(timesteps) < 0).all()


def test_dpm_solver_asks_at_as_many_timesteps_as_told():
  for schedule in (linear(), scaled_linear()):
    for steps in (2, 10, 50, 200, 999, None):
      timesteps = samplers.dpm_solver(schedule, steps).timesteps
      assert len(timesteps) == (steps or 1000)
      assert (np.diff(timesteps) < 0).all()
      assert (timesteps[0], timesteps[-1]) == (999, 0)


def test_wrong_plans_say_what_is_right():
  schedule = linear()
  assert len(samplers.make_plan('ddim', schedule, 70).timesteps) == 72
  assert samplers.make_plan('ddpm', schedule, 70, variance='learned').learned
  assert not samplers.make_plan('dpm_solver', schedule, 20).draws
  with pytest.raises(UserError, match="unknown sampler 'plms'; choose from ddim, ddpm, dpm_solver"):
    samplers.make_plan('plms', schedule, 50)
  with pytest.raises(UserError, match='steps=600; ddim takes 2 to 500 of 1000 timesteps, or all'):
    samplers.make_plan('ddim', schedule, 600)
  with pytest.raises(UserError, match='steps=1; dpm_solver takes 2 to 1000'):
    samplers.make_plan('dpm_solver', schedule, 1)
  with pytest.raises(UserError, match=r'eta=0.5 with the sampler ddpm'):
    samplers.make_plan('ddpm', schedule, 50, eta=0.5)
  with pytest.raises(UserError, match='eta=2;'):
    samplers.make_plan('ddim', schedule, 50, eta=2)
  for eta in (-0.5, float('nan')):
    with pytest.raises(UserError, match=f'eta={eta};'):
      samplers.make_plan('ddim', schedule, 50, eta=eta)
  with pytest.raises(UserError, match="unknown variance 'fixed'; choose from small, large, learned"):
    samplers.make_plan('ddpm', schedule, variance='fixed')
  with pytest.raises(UserError, match='give `keys`'):
    samplers.sample(samplers.ddpm(schedule), lambda x, time: x, jnp.zeros((1, 2)))


def test_noise_is_float32_whatever_the_default_is():
  with jax.enable_x64(True):
    assert samplers.draw_noise(jax.random.split(jax.random.key(0), 2), (3,)).dtype == jnp.float32
