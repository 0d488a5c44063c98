"""Each axis is averaged where it shrinks, and only there."""

import numpy as np
import pytest

from jaxface.area import to_square


@pytest.mark.parametrize('turned', [False, True])
@pytest.mark.parametrize('short', [4, 8, 16])
def test_a_long_side_is_averaged_whatever_becomes_of_the_short_one(short, turned):
  stripes = np.zeros((short, 80, 3), np.float32)
  stripes[:, ::5] = 1  # Of the two pixels next to each centre, which bilinear takes, one.
  found = to_square(stripes.swapaxes(0, 1) if turned else stripes, 8)
  assert found.shape == (8, 8, 3)
  np.testing.assert_allclose(found, 0.2, atol=1e-6)


def test_what_grows_is_interpolated():
  ramp = np.tile(np.arange(4, dtype=np.float32)[:, None], (1, 8))
  expected = np.clip((np.arange(8) + 0.5) / 2 - 0.5, 0, 3)
  np.testing.assert_allclose(to_square(ramp, 8), np.tile(expected[:, None], (1, 8)), atol=1e-6)


def test_what_is_square_already_stays():
  picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
  assert to_square(picture, 8) is picture
