"""Checkpoints of the face parser and of ResNet-18, there and back, and as workdirs."""

import functools
import json

import jax
import numpy as np
import pytest

from jaxface import convert
from jaxface.cli import load_config
from jaxface.convert.command import convert as convert_file
from jaxface.convert.command import default_experiment
from jaxface.errors import UserError
from jaxface.models.bisenet import BiSeNet, widths
from jaxface.models.resnet import ResNet18
from jaxface.runs import load_run
from tests.golden import load
from tests.smoke import REPOSITORY

SMALL = BiSeNet(**widths(1 / 16)._asdict())  # Of the smoke configuration, so that programs are compiled once.


def _random(module):
  shapes = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32))
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), shapes)


def _state():
  return convert.to_reference('bisenet', _random(SMALL))


@pytest.mark.parametrize(
  ('system', 'module'), [('bisenet', SMALL.clone(num_classes=5)), ('resnet18', ResNet18((2, 3, 4, 5)))]
)
def test_round_trip_recovers_module_and_variables(system, module):
  variables = _random(module)
  back, restored = convert.from_reference(system, convert.to_reference(system, variables))
  assert back == module
  jax.tree.map(np.testing.assert_array_equal, restored, variables)


def test_public_names_are_given_back_all():
  _, state, _ = load('bisenet/eval_128')
  back = convert.to_reference('bisenet', convert.from_reference('bisenet', state)[1])
  assert back.keys() == state.keys()
  for name, tensor in state.items():
    np.testing.assert_array_equal(back[name], tensor, err_msg=name)
    assert back[name].dtype == tensor.dtype


def test_counters_classifiers_and_prefixes_do_not_matter():
  state = _state()
  changed = {f'module.{name}': tensor for name, tensor in state.items() if not name.endswith('num_batches_tracked')}
  same = functools.partial(jax.tree.map, np.testing.assert_array_equal)
  same(convert.from_reference('bisenet', changed)[1], convert.from_reference('bisenet', state)[1])
  backbone = {name.removeprefix('cp.resnet.'): t for name, t in state.items() if name.startswith('cp.resnet.')}
  _, variables = convert.from_reference('resnet18', {**backbone, 'fc.weight': np.ones((3, 2)), 'fc.bias': np.ones(3)})
  same(variables['params'], convert.from_reference('bisenet', state)[1]['params']['context']['resnet'])


def test_misfits_are_listed_in_one_error():
  state = _state()
  del state['ffm.conv1.weight']
  state['conv_out.extra'] = np.zeros(2)
  state['cp.arm16.conv.conv.weight'] = state['cp.arm16.conv.conv.weight'][:2]
  with pytest.raises(
    UserError, match='no bisenet checkpoint: 1 missing: ffm.conv1.weight; 1 unexpected: conv_out'
  ) as e:
    convert.from_reference('bisenet', state)
  assert 'cp.arm16.conv.conv.weight (2, 16, 3, 3) instead of (8, 16, 3, 3)' in str(e.value)
  with pytest.raises(UserError, match='no bisenet checkpoint: 160 missing'):
    convert.from_reference('bisenet', {})


@pytest.fixture(scope='module')
def file(tmp_path_factory):
  path = tmp_path_factory.mktemp('weights') / 'parser.npz'
  np.savez(path, **_state())
  return path


def _convert(system, file, workdir, **options):
  make_config = lambda variant: load_config(f'{REPOSITORY / default_experiment(system)}:{variant},smoke', [])
  convert_file(system, file, workdir, make_config=make_config, **options)


def test_a_file_becomes_a_workdir_that_opens(tmp_path, file, capsys):
  _convert('bisenet', file, tmp_path / 'run', image_size=48)
  run = load_run(tmp_path / 'run')
  assert run.step == 0
  assert run.config.model.label_order == run.engine.task.label_order == 'bisenet'
  assert run.config.model.image_size == 48
  assert run.engine.task.model == SMALL
  restored = {'params': run.state.params, 'batch_stats': run.state.model_state}
  jax.tree.map(np.testing.assert_array_equal, restored, _random(SMALL))
  report = json.loads((tmp_path / 'run' / 'convert.json').read_text())
  assert report['tensors'] == 191
  assert report['parity']['tensors compared'] == 160
  assert report['parity']['largest difference'] == 0
  assert 'jaxface parse --parser' in capsys.readouterr().out
  with pytest.raises(UserError, match='already holds checkpoints'):
    _convert('bisenet', file, tmp_path / 'run')


def test_a_backbone_becomes_a_parser_to_start_from(tmp_path, file):
  state = {name.removeprefix('cp.resnet.'): t for name, t in _state().items() if name.startswith('cp.resnet.')}
  np.savez(tmp_path / 'resnet.npz', **state)
  _convert('resnet18', tmp_path / 'resnet.npz', tmp_path / 'run')
  run = load_run(tmp_path / 'run')
  assert run.config.model.label_order == 'celebamask_hq'
  expected = _random(SMALL)
  same = functools.partial(jax.tree.map, np.testing.assert_array_equal)
  same(run.state.params['context']['resnet'], expected['params']['context']['resnet'])
  same(run.state.model_state['context']['resnet'], expected['batch_stats']['context']['resnet'])
  assert run.state.params['head']['classes']['kernel'].std() > 0


@pytest.mark.parametrize(
  ('system', 'options', 'message'),
  [
    ('gan', {}, "unknown system 'gan'.*vae, bisenet, resnet18"),
    ('bisenet', {'workdir': None}, 'say which one to make: --workdir'),
    ('bisenet', {'more': ['second.pth']}, 'unexpected file second.pth'),
    ('bisenet', {'key': 'ema'}, "no entry 'ema'"),
    ('resnet18', {}, 'no resnet18 checkpoint'),
    ('vae', {'key': 'ema'}, 'is for PyTorch files'),
  ],
)
def test_wrong_input_says_what_is_right(tmp_path, file, system, options, message):
  with pytest.raises(UserError, match=message):
    convert_file(system, file, **{'workdir': tmp_path / 'run', 'make_config': None, **options})
  assert not (tmp_path / 'run').exists()


def test_other_classes_are_refused(tmp_path):
  np.savez(tmp_path / 'x.npz', **convert.to_reference('bisenet', _random(SMALL.clone(num_classes=5))))
  with pytest.raises(UserError, match='has 5 classes; only 19'):
    _convert('bisenet', tmp_path / 'x.npz', tmp_path / 'run')
