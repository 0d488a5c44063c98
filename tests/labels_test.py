import numpy as np
import pytest

from jaxface import labels
from jaxface.errors import UserError


def test_bisenet_table_matches_by_name():
  # The published look-up table between the two orders.
  expected = [0, 1, 6, 7, 4, 5, 3, 8, 9, 15, 2, 10, 11, 12, 17, 16, 18, 13, 14]
  np.testing.assert_array_equal(labels.lookup_table('bisenet'), expected)
  np.testing.assert_array_equal(labels.lookup_table('celebamask_hq'), np.arange(19))


def test_makeup_transfer_has_fourteen_classes_and_the_others_all():
  expected = {1: 'skin', 2: 'l_brow', 4: 'l_eye', 6: 'nose', 7: 'u_lip', 8: 'mouth', 9: 'l_lip', 10: 'hair', 13: 'neck'}
  table = labels.lookup_table('makeup_transfer')
  assert len(table) == 14
  assert {i: labels.CLASSES[table[i]] for i in expected} == expected
  assert labels.FULL_ORDERS == ('celebamask_hq', 'bisenet')


def test_makeup_transfer_has_the_places_that_psgan_gives_bisenets_classes():
  # What Makeup Transfer does not tell apart becomes background there.
  table = [0, 1, 2, 3, 4, 5, 0, 11, 12, 0, 6, 8, 7, 9, 13, 0, 0, 10, 0]
  placed = {i: name for i, name in zip(table, labels.BISENET_CLASSES, strict=True) if i}
  assert placed == dict(enumerate(labels.MAKEUP_TRANSFER_CLASSES[1:], 1))


def test_mirror_swaps_sides_and_nothing_else():
  moved = {(labels.CLASSES[i], labels.CLASSES[m]) for i, m in enumerate(labels.MIRROR) if i != m}
  sides = {('l_eye', 'r_eye'), ('l_brow', 'r_brow'), ('l_ear', 'r_ear')}
  assert moved == sides | {(b, a) for a, b in sides}
  np.testing.assert_array_equal(labels.MIRROR[labels.MIRROR], np.arange(19))


def test_face_has_hair_and_hat_but_not_ears_neck_and_cloth():
  # Indices 0, 7, 8, 9, 14, 15, 16 of the BiSeNet order are not face (Toledo & Antonelo 2021).
  in_bisenet_order = labels.FACE[labels.lookup_table('bisenet')]
  assert set(np.flatnonzero(in_bisenet_order == 0)) == {0, 7, 8, 9, 14, 15, 16}


def test_unknown_names_say_what_there_is():
  with pytest.raises(UserError, match='beard.*choose from background'):
    labels.index('beard')
  with pytest.raises(UserError, match=r'mt.*choose from celebamask_hq, bisenet'):
    labels.lookup_table('mt')
