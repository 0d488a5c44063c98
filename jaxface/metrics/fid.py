"""FID (Heusel et al. 2017): the Frechet distance between two sets of pictures' features, as Gaussians; lower is better.

The features are those of `jaxface.models.inception`; statistics, all in float64 on the host, and the distance are here.
A figure depends on how many pictures there are on either side: few make it larger, so compare only like counts.
"""

# N pictures | D features

import dataclasses
import os
import zipfile

import numpy as np

from jaxface.errors import UserError

# Below as many pictures as there are features the covariances are singular, and the distance mostly says so.
LEAST_PICTURES = 2048

# How pictures reach the network: what a figure's name leaves open.
PREPARATION = '299x299 bilinear without antialiasing'


def check_count(count: int, of: str = '') -> None:
  """UserError where `count` pictures are too few to measure by; `of` names the set."""
  if count < LEAST_PICTURES:
    raise UserError(
      f'{of and f"{of}: "}FID of {count:,} pictures is mostly noise and bias, for it estimates a covariance of 2,048 '
      f'features; take {LEAST_PICTURES:,} pictures or more on either side (10,000 and more are usual), take kid, or '
      'say --allow-few'
    )


@dataclasses.dataclass(frozen=True)
class FeatureStatistics:
  """Mean and covariance of a set of features; sets are added up, in any order, and never change.

  Attributes:
    mu: their mean, float64 [D].
    sigma: their covariance with divisor N - 1, float64 [D, D]; zeros for a single one.
    count: how many they are, N; None where a file does not say it.
  """

  mu: np.ndarray
  sigma: np.ndarray
  count: int | None

  @classmethod
  def of(cls, features: np.ndarray) -> 'FeatureStatistics':
    """Statistics of features [N, D], N at least 1. UserError where they are not finite."""
    features = np.asarray(features, np.float64)
    assert features.ndim == 2, features.shape
    assert len(features), features.shape
    if not np.isfinite(features).all():
      raise UserError('some features are not finite: check the pictures and the weights')
    mu = features.mean(0)
    # Centred first: sums of squares would lose a small variance beside a large mean.
    centred = features - mu
    return cls(mu, centred.T @ centred / max(len(features) - 1, 1), len(features))

  def merge(self, other: 'FeatureStatistics') -> 'FeatureStatistics':
    """Statistics of both sets together (Chan et al. 1983). UserError where a count is unknown."""
    if self.count is None or other.count is None:
      raise UserError('these statistics do not say of how many pictures they are, and cannot be added to others')
    count = self.count + other.count
    apart = other.mu - self.mu
    scatter = self.sigma * max(self.count - 1, 0) + other.sigma * max(other.count - 1, 0)
    scatter += np.outer(apart, apart) * (self.count * other.count / count)
    return FeatureStatistics(self.mu + apart * (other.count / count), scatter / (count - 1), count)

  def save(self, path: str | os.PathLike) -> None:
    """Writes .npz with `mu` and `sigma`, as pytorch-fid reads them, and `count`."""
    numbers = {'mu': self.mu, 'sigma': self.sigma}
    if self.count is not None:
      numbers['count'] = np.asarray(self.count)
    with open(path, 'wb') as file:
      np.savez(file, **numbers)

  @classmethod
  def load(cls, path: str | os.PathLike) -> 'FeatureStatistics':
    """Reads what `save` or pytorch-fid wrote. UserError where the file is missing or is something else."""
    try:
      with np.load(path, allow_pickle=False) as arrays:
        mu, sigma = (np.asarray(arrays[name], np.float64) for name in ('mu', 'sigma'))
        count = int(arrays['count']) if 'count' in arrays else None
    except FileNotFoundError as error:
      raise UserError(f'{os.fspath(path)}: no such file; expected saved statistics (.npz)') from error
    except (OSError, ValueError, KeyError, AttributeError, EOFError, zipfile.BadZipFile) as error:
      raise UserError(
        f'{os.fspath(path)}: no statistics of features; expected an .npz with arrays mu [D] and sigma [D, D]'
      ) from error
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)) or not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
      shapes = f'mu {mu.shape} and sigma {sigma.shape} must be finite, [D] and [D, D]'
      raise UserError(f'{os.fspath(path)}: no statistics of features; {shapes}')
    return cls(mu, sigma, count)


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
  """|mu_a - mu_b|^2 + tr(A + B - 2 (A B)^1/2), A and B the covariances; at least 0, symmetric.

  The trace of the root is the sum of the roots of the eigenvalues of R^T B R with A = R R^T: a symmetric problem, of
  A's rank, for which singular covariances need no mending.
  """
  if a.mu.shape != b.mu.shape:
    raise UserError(f'statistics of {len(a.mu)} and of {len(b.mu)} features cannot be compared')
  if (b.count or 0) < (a.count or 0):
    # Of two singular covariances the one of lower rank makes the smaller problem.
    a, b = b, a
  root = _root(a)
  product = root.T @ b.sigma @ root
  overlap = np.sqrt(np.clip(np.linalg.eigvalsh(product), 0, None)).sum()
  distance = np.square(a.mu - b.mu).sum() + np.trace(a.sigma) + np.trace(b.sigma) - 2 * overlap
  return max(float(distance), 0.0)


def _root(statistics: FeatureStatistics) -> np.ndarray:
  """R [D, rank] with R R^T = sigma."""
  if statistics.count is None or statistics.count > len(statistics.mu):
    try:
      # Many times faster than eigenvectors, but only for what is not singular.
      return np.linalg.cholesky(statistics.sigma)
    except np.linalg.LinAlgError:
      pass
  eigenvalues, vectors = np.linalg.eigh(statistics.sigma)
  # What lies below is rounding noise, whose roots would add up to something.
  real = eigenvalues > max(eigenvalues[-1], 0) * len(eigenvalues) * np.finfo(np.float64).eps
  return vectors[:, real] * np.sqrt(eigenvalues[real])
