"""Schedules against stored numbers of the public code."""

import numpy as np
import pytest

from jaxface.diffusion import schedule as schedules
from jaxface.errors import UserError
from tests.golden import GOLDENS, load


def test_scaled_linear_matches_the_golden():
  _, _, golden = load('scadm/schedule')
  schedule = schedules.scaled_linear()
  a = schedule.alphas_cumprod
  arrays = {
    'betas': schedule.betas,
    'alphas_cumprod': a,
    'posterior_variance': schedule.posterior_variance,
    'posterior_mean_coef1': schedule.posterior_from_x0,
    'posterior_mean_coef2': schedule.posterior_from_x,
    'sqrt_recip_alphas_cumprod': np.sqrt(1 / a),
    'sqrt_recipm1_alphas_cumprod': np.sqrt(1 / schedule.signal_to_noise),
  }
  for name, values in arrays.items():
    np.testing.assert_allclose(values, golden[name], rtol=2e-6, err_msg=name)
  # That code has log(1e-20) first, which is of no use; the other public code repeats the second entry.
  log_variance = golden['posterior_log_variance_clipped']
  np.testing.assert_allclose(schedule.posterior_log_variance[1:], log_variance[1:], rtol=2e-6)
  np.testing.assert_allclose(schedule.posterior_log_variance[0], log_variance[1], rtol=2e-6)


def test_respaced_process_matches_the_golden():
  with np.load(GOLDENS / 'sdm' / 'unet.npz') as golden:
    timesteps, betas = golden['timestep_map'], golden['betas_respaced']
  schedule = schedules.linear()
  kept = schedules.spaced_timesteps(len(schedule), 20)
  np.testing.assert_array_equal(kept, timesteps)
  np.testing.assert_allclose(schedules.respaced(schedule, kept).betas, betas, rtol=2e-6)


def test_rounding_of_spaced_timesteps_is_the_public_codes():
  # Ten times 49.95 is 499.5, rounded to 500; added up in float64 it is a little less.
  added = []
  for _ in range(21):
    added.append(added[-1] + 999 / 20 if added else 0.0)
  np.testing.assert_array_equal(schedules.spaced_timesteps(1000, 21), [round(value) for value in added])
  assert np.any(np.round(np.linspace(0, 999, 21)) != schedules.spaced_timesteps(1000, 21))


def test_every_count_of_spaced_timesteps_is_kept():
  for count in (2, 3, 100, 999, 1000):
    timesteps = schedules.spaced_timesteps(1000, count)
    assert len(set(timesteps)) == count
    assert (timesteps[0], timesteps[-1]) == (0, 999)


def test_make_schedule_by_name():
  schedule = schedules.make_schedule('linear', end=0.01, timesteps=10)
  np.testing.assert_allclose(schedule.betas, np.linspace(1e-4, 0.01, 10))
  np.testing.assert_allclose(schedules.make_schedule('linear', start=1e-3).betas, np.linspace(1e-3, 0.02, 1000))
  with pytest.raises(UserError, match="unknown schedule 'cosin'; choose from scaled_linear, linear"):
    schedules.make_schedule('cosin')
  with pytest.raises(UserError, match='end=2 of the schedule'):
    schedules.make_schedule('linear', end=2)
  with pytest.raises(UserError, match='start=0 of the schedule'):
    schedules.make_schedule('linear', start=0)
  with pytest.raises(UserError, match='timesteps=1;'):
    schedules.make_schedule('linear', timesteps=1)
