"""Frechet distance against stored numbers and closed forms; statistics that add up whichever way they are cut."""

import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.metrics import fid
from jaxface.metrics.fid import FeatureStatistics, frechet_distance
from tests.golden import load


@pytest.fixture(scope='module')
def golden():
  return load('inception_fid/frechet')[2]


def _sets(golden):
  return {i: FeatureStatistics(golden[f'mu{i}'], golden[f'sigma{i}'], None) for i in range(1, 5)}


def _features(count=300, size=20, seed=0):
  return np.random.default_rng(seed).gamma(0.5, size=(count, size)).astype(np.float32) + 100


@pytest.mark.parametrize('pair', ['1_2', '1_1', '1_3', '3_2', '3_3', '1_4'])
def test_distance_matches_the_golden(golden, pair):
  sets = _sets(golden)
  a, b = (sets[int(i)] for i in pair.split('_'))
  # The reference's root of a singular product is only good to 1e-6; eigenvalues are exact, and agree among themselves.
  np.testing.assert_allclose(frechet_distance(a, b), golden[f'fid_{pair}'], rtol=1e-6, atol=1e-5)
  np.testing.assert_allclose(frechet_distance(a, b), golden[f'exact_{pair}'], rtol=1e-8, atol=1e-5)
  np.testing.assert_allclose(frechet_distance(b, a), frechet_distance(a, b), rtol=1e-8, atol=1e-5)


def test_statistics_match_the_golden(golden):
  statistics = FeatureStatistics.of(golden['features'])
  np.testing.assert_allclose(statistics.mu, golden['features_mu'], rtol=0, atol=1e-12)
  np.testing.assert_allclose(statistics.sigma, golden['features_sigma'], rtol=0, atol=1e-12)


@pytest.mark.parametrize('rank', [6, 3])
def test_gaussians_that_share_axes_have_a_closed_form(rank):
  rng = np.random.default_rng(0)
  axes = np.linalg.qr(rng.standard_normal((6, 6)))[0]
  a, b = rng.uniform(1, 3, (2, 6)) * (np.arange(6) < [[rank], [6]])
  apart = rng.standard_normal(6)
  first = FeatureStatistics(apart, axes * a**2 @ axes.T, None)
  second = FeatureStatistics(np.zeros(6), axes * b**2 @ axes.T, None)
  expected = np.square(apart).sum() + np.square(a - b).sum()
  # A singular covariance is known to about 1e-16, and its root therefore to 1e-8.
  np.testing.assert_allclose(frechet_distance(first, second), expected, rtol=1e-7)
  np.testing.assert_allclose(frechet_distance(second, first), expected, rtol=1e-7)


@pytest.mark.parametrize('count', [300, 12])
def test_a_set_is_at_distance_0_of_itself(count):
  statistics = FeatureStatistics.of(_features(count))
  assert 0 <= frechet_distance(statistics, statistics) < 1e-9 * np.trace(statistics.sigma)


def test_however_a_set_is_cut_its_statistics_are_the_same():
  features = _features()
  whole = FeatureStatistics.of(features)
  np.testing.assert_allclose(whole.sigma, np.cov(features.astype(np.float64).T), rtol=1e-12, atol=1e-14)
  one_by_one = FeatureStatistics.of(features[:1])
  for start, stop in ((1, 2), (2, 10), (10, 300)):
    one_by_one = one_by_one.merge(FeatureStatistics.of(features[start:stop]))
  shards = [FeatureStatistics.of(features[i::4]) for i in range(4)]
  merged = shards[3].merge(shards[1]).merge(shards[0].merge(shards[2]))
  for other in (one_by_one, merged):
    assert other.count == 300
    np.testing.assert_allclose(other.mu, whole.mu, rtol=1e-13)
    # The mean is a hundred times the deviation: sums of squares would be off by 1e-12 here.
    np.testing.assert_allclose(other.sigma, whole.sigma, rtol=0, atol=1e-14)


def test_saved_statistics_come_back_and_are_readable_by_name(tmp_path):
  statistics = FeatureStatistics.of(_features(30, 4))
  statistics.save(tmp_path / 'a.npz')
  back = FeatureStatistics.load(tmp_path / 'a.npz')
  assert back.count == 30
  np.testing.assert_array_equal(back.sigma, statistics.sigma)
  with np.load(tmp_path / 'a.npz') as arrays:
    np.testing.assert_array_equal(arrays['mu'], statistics.mu)
    # What pytorch-fid writes has no count.
    np.savez(tmp_path / 'b.npz', mu=arrays['mu'], sigma=arrays['sigma'])
  foreign = FeatureStatistics.load(tmp_path / 'b.npz')
  assert foreign.count is None
  assert frechet_distance(foreign, statistics) < 1e-12
  with pytest.raises(UserError, match='do not say of how many'):
    foreign.merge(statistics)


def test_files_and_features_that_are_none_are_refused(tmp_path):
  with pytest.raises(UserError, match='no such file'):
    FeatureStatistics.load(tmp_path / 'none.npz')
  (tmp_path / 'text.npz').write_text('mu sigma')
  np.savez(tmp_path / 'other.npz', weights=np.zeros(3))
  np.savez(tmp_path / 'shape.npz', mu=np.zeros(3), sigma=np.zeros((2, 2)))
  for name in ('text', 'other', 'shape'):
    with pytest.raises(UserError, match=f'{name}.npz: no statistics of features'):
      FeatureStatistics.load(tmp_path / f'{name}.npz')
  with pytest.raises(UserError, match='not finite'):
    FeatureStatistics.of(np.full((2, 3), np.nan))
  with pytest.raises(UserError, match='4 and of 5 features'):
    frechet_distance(FeatureStatistics.of(np.eye(4)), FeatureStatistics.of(np.eye(5)))


def test_as_many_pictures_as_features_are_enough():
  fid.check_count(2048)
  with pytest.raises(UserError, match='faces: FID of 2,047 pictures is mostly noise .*take kid, or say --allow-few'):
    fid.check_count(2047, 'faces')
