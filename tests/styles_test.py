"""Styles of parts: what is taken from which face, and the way between two."""

import numpy as np
import pytest

from jaxface import labels, styles
from jaxface.errors import UserError


def _style(seed: int, *missing: str) -> styles.Style:
  present = np.ones(labels.NUM_CLASSES, bool)
  present[[labels.index(name) for name in missing]] = False
  return styles.Style(np.random.default_rng(seed).uniform(-1, 1, (labels.NUM_CLASSES, 4)).astype(np.float32), present)


def test_a_part_changes_no_other_classes_style():
  source, reference = _style(0), _style(1)
  taken = styles.take(source, reference, styles.part_classes('lips'))
  changed = {labels.CLASSES[i] for i in np.flatnonzero((taken.tokens != source.tokens).any(1))}
  assert changed == {'u_lip', 'l_lip', 'mouth'}
  rows = list(styles.part_classes('lips'))
  np.testing.assert_array_equal(taken.tokens[rows], reference.tokens[rows])
  np.testing.assert_array_equal(styles.take(source, reference).tokens, reference.tokens)


def test_what_the_reference_lacks_is_kept():
  source, reference = _style(0, 'hat'), _style(1, 'l_eye', 'hat')
  taken = styles.take(source, reference, styles.part_classes('eyes'))
  left, right = labels.index('l_eye'), labels.index('r_eye')
  np.testing.assert_array_equal(taken.tokens[left], source.tokens[left])
  np.testing.assert_array_equal(taken.tokens[right], reference.tokens[right])
  assert styles.take(source, reference).present[left]
  assert not styles.take(source, reference).present[labels.index('hat')]

  wanted = styles.classes_in(np.array([[left, right], [labels.index('skin'), labels.index('hat')]]))
  assert styles.class_names(styles.lacking(wanted, reference)) == ['l_eye', 'hat']
  assert styles.class_names(styles.lacking(wanted, reference, styles.part_classes('eyes'))) == ['l_eye']


def test_mixing_is_exact_at_both_ends_and_straight_between():
  first, second = _style(0), _style(1)
  np.testing.assert_array_equal(styles.mix(first, second, 0).tokens, first.tokens)
  np.testing.assert_array_equal(styles.mix(first, second, 1).tokens, second.tokens)
  quarter = styles.mix(first, second, 0.25)
  np.testing.assert_allclose(quarter.tokens, 0.75 * first.tokens + 0.25 * second.tokens, atol=1e-6)
  assert quarter.tokens.dtype == np.float32


def test_parts_have_the_names_of_classes_and_groups():
  assert styles.class_names(styles.part_classes('face')) == ['skin', 'nose']
  assert styles.class_names(styles.part_classes('l_lip')) == ['l_lip']
  assert styles.class_names(styles.part_classes('glasses')) == ['eye_g']
  every = [each for part in styles.PARTITION for each in styles.part_classes(part)]
  assert sorted(every) == list(range(labels.NUM_CLASSES))
  with pytest.raises(UserError, match="unknown part 'beard'; choose from face, eyes, .*hair, hat, .*cloth"):
    styles.part_classes('beard')
