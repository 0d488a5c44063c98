"""The embedded dataset: faces are pure functions of (seed, index), label maps are exact, makeup changes makeup only."""

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import warnings

import cv2
import numpy as np
import pytest

from jaxface import labels
from jaxface.errors import UserError
from jaxface_data.synthetic_faces import render as render_module
from jaxface_data.synthetic_faces import synthetic_faces_dataset_builder as builder_module
from jaxface_data.synthetic_faces.alignment import EYE_DISTANCE, EYE_ERROR, EYE_LEVEL
from jaxface_data.synthetic_faces.canvas import Canvas
from jaxface_data.synthetic_faces.ink import Ink
from jaxface_data.synthetic_faces.references import reference_index
from jaxface_data.synthetic_faces.render import render, render_pair
from jaxface_data.synthetic_faces.scene import draw_scene
from jaxface_data.synthetic_faces.synthetic_faces_dataset_builder import Builder, make_config, split_indices

COUNT = 160
SIZE = 64


@pytest.fixture(scope='module')
def faces():
  with warnings.catch_warnings():
    # An overflow would read a texture where there is none, and differ from run to run.
    warnings.simplefilter('error')
    return [render(0, index, size=SIZE) for index in range(COUNT)]


def _render_backwards(indices):
  return [render(5, index, size=SIZE) for index in reversed(indices)][::-1]


def test_a_face_is_a_function_of_seed_and_index_in_any_process_and_order():
  here = [render(5, index, size=SIZE) for index in range(4)]
  with multiprocessing.get_context('spawn').Pool(1) as pool:
    (there,) = pool.map(_render_backwards, [range(4)])
  for a, b in zip(here, there, strict=True):
    np.testing.assert_array_equal(a.image, b.image)
    np.testing.assert_array_equal(a.label, b.label)
    assert a.makeup == b.makeup


def test_faces_differ_by_index_and_by_seed(faces):
  assert len({face.image.tobytes() for face in faces}) == COUNT
  assert len({face.label.tobytes() for face in faces}) == COUNT
  assert not np.array_equal(render(1, 0, size=SIZE).image, faces[0].image)


def test_shapes_and_label_values(faces):
  for face in faces:
    assert face.image.shape == (SIZE, SIZE, 3)
    assert face.image.dtype == np.uint8
    assert face.label.shape == (SIZE, SIZE)
    assert face.label.dtype == np.uint8
    assert face.label.max() < labels.NUM_CLASSES


def test_every_class_occurs_about_as_often_as_in_celeba(faces):
  present = {
    name: np.mean([(face.label == index).any() for face in faces]) for index, name in enumerate(labels.CLASSES)
  }
  for name in ('background', 'skin', 'nose', 'u_lip', 'l_lip', 'neck'):
    assert present[name] > 0.99, name
  for name in ('l_eye', 'r_eye', 'l_brow', 'r_brow', 'hair'):
    assert present[name] > 0.75, name
  assert present['cloth'] > 0.6
  rates = {'eye_g': (0.06, 0.2), 'hat': (0.03, 0.14), 'ear_r': (0.1, 0.4), 'neck_l': (0.03, 0.2), 'mouth': (0.2, 0.6)}
  for name, (low, high) in rates.items():
    assert low < present[name] < high, (name, present[name])
  assert min(present['l_ear'], present['r_ear']) > 0.25


def test_a_pixel_has_the_label_of_what_lies_at_its_middle():
  square = np.array([(2.3, 2.3), (5.3, 2.3), (5.3, 5.3), (2.3, 5.3)], np.float32) / 8
  expected = np.zeros((8, 8), np.uint8)
  expected[2:5, 2:5] = 7
  for halvings in (1, 2):
    canvas = Canvas(8)
    ink = Ink(canvas, square, halvings=halvings)
    ink.fill([ink.points(square)], np.ones(3, np.float32), labels=[7])
    ink.apply()
    np.testing.assert_array_equal(canvas.label, expected)
  canvas = Canvas(8)
  cover = canvas.cover(square)
  canvas.paint(cover, np.full((*cover.cover.shape, 3), 255, np.uint8), 7)
  np.testing.assert_array_equal(canvas.label[3:5, 2:5], 7)


def test_face_fills_the_picture_as_in_aligned_crops(faces):
  face_share = np.array(
    [np.isin(face.label, [labels.index(n) for n in ('skin', 'nose', 'l_lip', 'hair')]).mean() for face in faces]
  )
  assert 0.3 < np.median(face_share) < 0.7
  assert face_share.min() > 0.15


def test_left_is_the_subjects_own(faces):
  for part in ('eye', 'brow', 'ear'):
    for face in faces:
      left, right = (np.nonzero(face.label == labels.index(f'{side}_{part}'))[1] for side in 'lr')
      if len(left) and len(right):
        assert left.mean() > right.mean(), part


def test_eyes_and_brows_are_seen_through_clear_lenses_and_not_through_dark_ones(faces, monkeypatch):
  scene = lambda index: draw_scene(np.random.default_rng([0, index]))
  worn = [index for index in range(COUNT) if scene(index).wear.glasses and abs(scene(index).pose.yaw) < 0.3]
  bare = lambda rng: dataclasses.replace(drawn := draw_scene(rng), wear=dataclasses.replace(drawn.wear, glasses=''))
  monkeypatch.setattr(render_module, 'draw_scene', bare)
  seen = {}
  for index in worn:
    without = render(0, index, size=SIZE).label
    for part in ('eye', 'brow'):
      there = np.isin(without, [labels.index(f'{side}_{part}') for side in 'lr'])
      kept = (faces[index].label == without)[there].mean()
      seen.setdefault((part, scene(index).wear.lens_opacity > 0.5), []).append(kept)
  assert len(seen) == 4
  assert min(seen['eye', False]) > 0.9
  assert max(seen['eye', True]) < 0.1
  assert min(seen['brow', False]) > 0.6


def test_parts_lie_where_a_face_has_them(faces):
  for face in faces:
    rows = {name: np.nonzero(face.label == labels.index(name))[0] for name in ('nose', 'u_lip', 'l_lip', 'neck')}
    assert rows['nose'].mean() < rows['u_lip'].mean() < rows['l_lip'].mean() < rows['neck'].mean()


def test_skin_covers_the_human_range_and_backgrounds_are_cluttered(faces):
  skin = np.array([face.image[face.label == labels.index('skin')].mean() for face in faces])
  assert np.percentile(skin, 95) > 170
  assert np.percentile(skin, 5) < 80
  clutter = [face.image[face.label == 0].std() for face in faces]
  assert np.median(clutter) > 35


def test_skin_is_shaded_not_flat(faces):
  relative = []
  for face in faces:
    skin = face.image[face.label == labels.index('skin')].mean(-1)
    relative.append(skin.std() / skin.mean())
  assert np.median(relative) > 0.1


def test_makeup_changes_the_face_alone():
  region = np.isin(np.arange(labels.NUM_CLASSES), [labels.index(n) for n in (
    'skin', 'nose', 'eye_g', 'l_eye', 'r_eye', 'l_brow', 'r_brow', 'mouth', 'u_lip', 'l_lip')])  # fmt: skip
  changed = []
  for index in range(12):
    bare, made_up = (render(0, index, size=96, makeup=on) for on in (False, True))
    np.testing.assert_array_equal(bare.label, made_up.label)
    assert bare.makeup == made_up.makeup
    difference = np.abs(bare.image.astype(int) - made_up.image).max(-1)
    # The lens blurs by a pixel or two, lashes stand over the edge, and hair's own edge lets a trace of skin through,
    # which the rounding of layers to whole numbers can double.
    near_face = cv2.dilate(region[bare.label].astype(np.uint8), np.ones((11, 11), np.uint8)) > 0
    assert difference[~near_face].max(initial=0) <= 2
    lips = np.isin(bare.label, [labels.index('u_lip'), labels.index('l_lip')])
    changed.append(difference[lips].mean())
  assert np.mean(changed) > 10


@pytest.mark.parametrize('aligned', [False, True])
def test_a_pair_is_the_face_without_makeup_and_with_its_own(aligned):
  # Long enough for hats, glasses, beards and hair over ears.
  for index in range(40):
    pair = render_pair(0, index, size=48, aligned=aligned)
    for face, makeup in zip(pair, (False, True), strict=True):
      alone = render(0, index, size=48, makeup=makeup, aligned=aligned)
      np.testing.assert_array_equal(face.image, alone.image)
      np.testing.assert_array_equal(face.label, alone.label)
      assert face.makeup == alone.makeup


def _eyes(face):
  """Centres of the eyes, [2, 2], in sides of the picture; nan where one is hidden for the most part."""
  masks = [face.label == labels.index(name) for name in ('r_eye', 'l_eye')]
  side = len(face.label)
  seen = [mask.sum() > side**2 / 500 for mask in masks]
  centers = [np.argwhere(m).mean(0)[::-1] if s else [np.nan] * 2 for m, s in zip(masks, seen, strict=True)]
  return (np.array(centers) + 0.5) / side


def test_aligned_eyes_lie_at_fixed_points(faces):
  aligned = np.array([_eyes(render(0, index, size=96, aligned=True)) for index in range(60)])
  expected = [[0.5 - EYE_DISTANCE / 2, EYE_LEVEL], [0.5 + EYE_DISTANCE / 2, EYE_LEVEL]]
  missed = np.hypot(*np.moveaxis(aligned - expected, -1, 0))
  # Turned heads keep their eyes closer, and noses hide corners of eyes: a mask's centre is a little off its eye's.
  assert np.nanmax(missed) < EYE_ERROR + 0.02
  assert 0.3 * EYE_ERROR < np.nanmedian(missed) < EYE_ERROR
  assert np.nanstd(aligned, 0).max() < 0.5 * np.nanstd([_eyes(face) for face in faces], 0).min()


def test_alignment_keeps_the_face_in_view():
  for index in range(60):
    label = render(0, index, size=64, aligned=True).label
    assert not np.isin(label[-1], [labels.index(name) for name in ('skin', 'u_lip', 'l_lip', 'nose')]).any(), index


def test_alignment_moves_the_head_and_nothing_else():
  for index in range(6):
    free, aligned = (render(0, index, size=96, aligned=on) for on in (False, True))
    behind = (free.label == 0) & (aligned.label == 0)
    # Stray hairs and blur reach a little over the label's edge.
    behind = cv2.erode(behind.astype(np.uint8), np.ones((13, 13), np.uint8), borderValue=1) > 0
    np.testing.assert_array_equal(free.image[behind], aligned.image[behind])
    assert not np.array_equal(free.label, aligned.label)
    assert free.makeup == aligned.makeup


def test_references_are_nobody_of_the_dataset_and_show_their_makeup():
  indices = [reference_index(0, index) for index in range(40)]
  assert indices == [reference_index(0, index) for index in range(40)]
  assert len(set(indices)) == 40
  assert min(indices) >= 2**32
  eyes = [labels.index('l_eye'), labels.index('r_eye')]
  for index in indices:
    label = render(0, index, size=48).label
    assert np.isin(label, eyes).any(), index


def test_a_reference_is_bare_turned_to_the_camera_and_of_the_faces_tone():
  for index in range(60):
    face, reference = (draw_scene(np.random.default_rng([0, i])) for i in (index, reference_index(0, index)))
    assert np.abs(np.sqrt(face.skin.color) - np.sqrt(reference.skin.color)).max() < 0.1
    assert not reference.skin.beard
    assert not reference.skin.stubble
    assert abs(reference.pose.yaw) < 0.4


def test_of_ten_faces_the_ninth_is_for_validation_and_the_tenth_for_test():
  assert split_indices(21) == {
    'train': [*range(8), *range(10, 18), 20], 'validation': [8, 18], 'test': [9, 19],
  }  # fmt: skip


def test_makeup_looks_alike_on_a_face_and_on_its_reference():
  looks = []
  for index in range(30):
    face = render(0, index, size=64)
    made_up = render(0, index, size=64, makeup=True)
    reference = render(0, reference_index(0, index), size=64, makeup=face.makeup)
    assert reference.makeup == face.makeup
    looks.append([_lip_hue(one) for one in (face, made_up, reference)])
  bare, made_up, reference = np.moveaxis(np.array(looks), 1, 0)
  assert np.corrcoef(made_up.ravel(), reference.ravel())[0, 1] > 0.8
  assert np.abs(made_up - reference).mean() < 0.6 * np.abs(bare - reference).mean()


def _lip_hue(face):
  lips = face.image[np.isin(face.label, [labels.index('u_lip'), labels.index('l_lip')])].astype(float).mean(0)
  return np.diff(lips / lips.mean())


def test_anybody_can_wear_the_parameters_of_a_makeup(faces):
  own = render(0, 8, size=SIZE, makeup=True)
  np.testing.assert_array_equal(render(0, 8, size=SIZE, makeup=own.makeup).image, own.image)
  # As a dataset stores them.
  stored = {name: np.float32(value) for name, value in own.makeup.items()}
  again = render(0, 8, size=SIZE, makeup=stored)
  assert np.abs(again.image.astype(int) - own.image).max() <= 1
  assert all(type(value) is float for value in again.makeup.values())
  others = render(0, 8, size=SIZE, makeup=faces[2].makeup)
  assert others.makeup == faces[2].makeup
  assert np.abs(others.image.astype(int) - own.image).max() > 20


def test_every_parameter_of_a_makeup_is_seen(faces):
  for name in faces[8].makeup:
    little, much = (render(0, 8, size=SIZE, makeup=faces[8].makeup | {name: value}) for value in (0.1, 0.9))
    assert not np.array_equal(little.image, much.image), name
    np.testing.assert_array_equal(little.label, much.label, err_msg=name)


def test_impossible_makeup_is_refused(faces):
  makeup = faces[0].makeup
  with pytest.raises(UserError, match='lip_opacity=1.5'):
    render(0, 0, size=16, makeup=makeup | {'lip_opacity': 1.5})
  with pytest.raises(UserError, match='unknown lips'):
    render(0, 0, size=16, makeup=makeup | {'lips': 0.5})
  with pytest.raises(UserError, match="no parameter 'lip_red'"):
    render(0, 0, size=16, makeup={'lip_opacity': 0.5})


def test_eye_shadow_and_blush_can_be_seen():
  changed = {'lids': [], 'cheeks': []}
  for index in range(30):
    bare, made_up = (render(0, index, size=96, makeup=on, aligned=True) for on in (False, True))
    difference = np.abs(bare.image.astype(int) - made_up.image).max(-1)
    eyes = np.isin(bare.label, [labels.index('l_eye'), labels.index('r_eye')]).astype(np.uint8)
    # From the upper lid up to below the brow.
    above = cv2.dilate(np.roll(eyes, -3, 0), np.ones((5, 3), np.uint8)) > eyes
    skin = bare.label == labels.index('skin')
    if eyes.any():
      changed['lids'].append(difference[above & skin].mean())
      changed['cheeks'].append(np.percentile(difference[skin], 90))
  assert np.mean(changed['lids']) > 20
  assert np.mean(changed['cheeks']) > 12


@pytest.mark.parametrize('index', [0, 3, 16, 27])
def test_a_scene_looks_the_same_at_any_size(index):
  small, large = (render(0, index, size=size) for size in (64, 128))
  reduced = cv2.resize(large.image, (64, 64), interpolation=cv2.INTER_AREA)
  assert np.abs(small.image.astype(int) - reduced).mean() < 6
  assert (small.label == large.label[1::2, 1::2]).mean() > 0.95


def test_odd_and_large_sizes():
  for size in (16, 97, 300):
    assert render(0, 7, size=size).image.shape == (size, size, 3)


def test_makeup_parameters_are_named_floats(faces):
  assert all(isinstance(value, float) and 0 <= value <= 1 for face in faces for value in face.makeup.values())
  assert {'lip_red', 'lip_opacity', 'shadow_opacity', 'blush_opacity', 'foundation', 'brow'} <= set(faces[0].makeup)


@pytest.mark.parametrize(
  ('options', 'name'),
  [
    ({}, 'faces_32'),
    ({'aligned': True}, 'faces_aligned_32'),
    ({'makeup_pairs': True}, 'makeup_32'),
    ({'makeup_pairs': True, 'aligned': True}, 'makeup_aligned_32'),
  ],
)
def test_prepared_examples_equal_rendered_ones(tmp_path, options, name):
  config = make_config(size=32, count=30, seed=3, **options)
  builder = Builder(data_dir=tmp_path, config=config, file_format='array_record')
  builder.download_and_prepare()
  assert config.name == name
  sizes = {name: split.num_examples for name, split in builder.info.splits.items()}
  assert sizes == {
    'train': 24,
    'validation': 3,
    'test': 3,
  }
  aligned = options.get('aligned', False)
  facts = {'label_order': 'celebamask_hq', 'seed': 3, 'count': 30, 'size': 32, 'aligned': aligned}
  assert facts.items() <= builder.info.metadata.items()
  seen = []
  for split, indices in split_indices(30).items():
    for index, example in zip(indices, builder.as_data_source(split=split), strict=True):
      face = render(3, index, size=32, aligned=aligned)
      assert example['id'].decode() == f'{index:08d}'
      np.testing.assert_array_equal(example['image'], face.image)
      np.testing.assert_array_equal(example['label'][..., 0], face.label)
      if 'makeup_pairs' in options:
        made_up = render(3, index, size=32, aligned=aligned, makeup=True)
        reference = render(3, reference_index(3, index), size=32, aligned=aligned, makeup=face.makeup)
        np.testing.assert_array_equal(example['makeup_image'], made_up.image)
        np.testing.assert_array_equal(example['reference_image'], reference.image)
        np.testing.assert_array_equal(example['reference_label'][..., 0], reference.label)
        assert example['makeup'] == pytest.approx(face.makeup)
      seen.append(index)
  assert sorted(seen) == list(range(30))


def _contents(examples):
  return [(key, example['image'].getvalue(), example['label'].getvalue()) for key, example in examples]


def test_processes_generate_the_same_examples_in_the_same_order(tmp_path, monkeypatch):
  builder = Builder(data_dir=tmp_path, config=make_config(size=16, count=24), workers=2)
  alone = _contents(builder._generate_examples(range(24)))
  monkeypatch.setattr(builder_module, '_WORTH_A_POOL', 12)
  pooled = _contents(builder._generate_examples(range(24)))
  assert [key for key, _, _ in alone] == [f'{index:08d}' for index in range(24)]
  assert alone == pooled


def _killed(index, **options):
  del index, options
  os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_told_and_not_waited_for(tmp_path, monkeypatch):
  builder = Builder(data_dir=tmp_path, config=make_config(size=16, count=24), workers=2)
  monkeypatch.setattr(builder_module, '_WORTH_A_POOL', 12)
  monkeypatch.setattr(builder_module, '_example', _killed)
  with pytest.raises(UserError, match='a process that renders faces was killed, .* with fewer --workers than 2'):
    list(builder._generate_examples(range(24)))


def test_preparing_does_not_import_tensorflow(tmp_path):
  program = (
    'import sys\n'
    'from jaxface_data.synthetic_faces.synthetic_faces_dataset_builder import Builder, make_config\n'
    'config = make_config(size=16, count=10)\n'
    f'builder = Builder(data_dir={str(tmp_path)!r}, config=config, file_format="array_record")\n'
    'builder.download_and_prepare()\n'
    'builder.as_data_source(split="train")[0]\n'
    'assert "tensorflow" not in sys.modules\n'
  )
  subprocess.run([sys.executable, '-c', program], check=True, capture_output=True)


@pytest.mark.parametrize('wrong', [{'size': 8}, {'count': 0}, {'seed': -1}])
def test_impossible_configs_are_refused(wrong):
  ((name, value),) = wrong.items()
  with pytest.raises(UserError, match=f'{name}={value}'):
    make_config(**wrong)
