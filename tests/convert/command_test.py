"""Checkpoints of makeup generators, SDM and the VQ autoencoder become workdirs; files of something else do not."""

import collections
import contextlib
import json
import pickle
import sys
import types
import zipfile
from pathlib import Path

import h5py
import jax
import numpy as np
import pytest
import safetensors.numpy

from jaxface import convert
from jaxface.checkpoint import Checkpoints
from jaxface.cli import load_config, main
from jaxface.convert import command
from jaxface.convert.command import WORKDIRS, default_experiment
from jaxface.convert.command import convert as convert_file
from jaxface.errors import UserError
from jaxface.models.beautygan import BeautyGenerator
from jaxface.models.ipmnet import IPMNet
from jaxface.models.sdm import SDMUNet
from jaxface.models.vae import FaceMaskVAE, stage_widths
from jaxface.models.vqgan import VQGAN
from jaxface.runs import load_run
from tests.convert.keras_h5_test import write_keras
from tests.smoke import REPOSITORY

# They differ in every size from the smoke configurations.
MODULES = {
  'ipmnet': IPMNet(dim=2, mlp_dim=5, style_dim=3, num_downsamples=1, num_blocks=2),
  'beautygan': BeautyGenerator(dim=3, num_blocks=2),
}


def _params(system):
  picture = np.zeros((1, 32, 32, 3), np.float32)
  shapes = jax.eval_shape(MODULES[system].init, jax.random.key(0), picture, picture)['params']
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), shapes)


def _state(system):
  return convert.to_reference(f'{system}_generator', {'params': _params(system)})


@contextlib.contextmanager
def pretend_torch():
  """A module that pickles name as PyTorch's; without PyTorch nothing else bears those names."""
  utils, torch = types.ModuleType('torch._utils'), types.ModuleType('torch')
  torch.FloatStorage = type('FloatStorage', (), {'__module__': 'torch'})

  def rebuild(*_):
    raise AssertionError

  rebuild.__module__, rebuild.__qualname__ = 'torch._utils', '_rebuild_tensor_v2'
  utils._rebuild_tensor_v2 = rebuild
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(sys.modules, 'torch', torch)
    patch.setitem(sys.modules, 'torch._utils', utils)
    yield torch


def save_torch(path, tree):
  """Writes nested dictionaries of float32 arrays as `torch.save` does."""
  with zipfile.ZipFile(path, 'w') as archive, pretend_torch() as torch, archive.open('archive/data.pkl', 'w') as file:
    stored = []

    class Storage:
      def __init__(self, array):
        self.key = str(len(stored))
        stored.append(array)

    class Pickler(pickle.Pickler):
      def persistent_id(self, value):
        if isinstance(value, Storage):
          return 'storage', torch.FloatStorage, value.key, 'cpu', stored[int(value.key)].size
        return None

      def reducer_override(self, value):
        if not isinstance(value, np.ndarray):
          return NotImplemented
        strides = tuple(step // value.itemsize for step in value.strides)
        hooks = collections.OrderedDict()
        return sys.modules['torch._utils']._rebuild_tensor_v2, (Storage(value), 0, value.shape, strides, False, hooks)

    Pickler(file, protocol=2).dump(tree)
    file.close()
    for key, array in enumerate(stored):
      archive.writestr(f'archive/data/{key}', array.tobytes())


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """As the public code saves them, but that entry 'b' of IPM-Net's has other numbers than 'a'."""
  folder = tmp_path_factory.mktemp('weights')
  state = _state('ipmnet')
  save_torch(folder / 'gen_00000001.pt', {'a': state, 'b': {name: 1 - tensor for name, tensor in state.items()}})
  save_torch(folder / '1_2_G.pth', collections.OrderedDict(_state('beautygan')))
  return {'ipmnet': folder / 'gen_00000001.pt', 'beautygan': folder / '1_2_G.pth'}


def _convert(system, file, workdir, overrides=(), **options):
  make_config = lambda variant: load_config(f'{REPOSITORY / default_experiment(system)}:{variant},smoke', overrides)
  convert_file(system, file, workdir, make_config=make_config, **options)


@pytest.mark.parametrize('system', MODULES)
def test_a_generator_becomes_a_workdir_that_opens(tmp_path, files, capsys, system):
  # Weights of losses are on nobody's disk; converting does not need them.
  weightless, mode = {'ipmnet': ('vggface2', 'jit'), 'beautygan': ('vgg19', 'pmap')}[system]
  overrides = [f'--config.loss.perceptual={weightless}', '--config.ema_decay=0.9', f'--config.parallel.mode={mode}']
  _convert(system, files[system], tmp_path / 'run', overrides)
  run = load_run(tmp_path / 'run')
  assert run.step == 0
  assert run.config.loss.perceptual == weightless
  assert run.engine.task.generator == MODULES[system]
  # These are the averaged ones; the report's parity is of the others.
  jax.tree.map(np.testing.assert_array_equal, run.state.params, {'generator': _params(system)})
  report = json.loads((tmp_path / 'run' / 'convert.json').read_text())
  used = [name for name in _state(system) if 'running' not in name and not name.startswith('sf.')]
  assert report['parity']['tensors compared'] == len(used)
  assert report['parity']['largest difference'] == 0
  assert 'jaxface makeup --workdir' in capsys.readouterr().out


def test_a_generator_alone_is_read_as_the_entry_of_a_whole_file(tmp_path, files):
  state = _state('ipmnet')
  safetensors.numpy.save_file(state, tmp_path / 'gen.safetensors')
  np.savez(tmp_path / 'gen.npz', **{f'{entry}.{name}': tensor for entry in 'ab' for name, tensor in state.items()})
  read = WORKDIRS['ipmnet'].read
  for file, key in ((files['ipmnet'], None), ('gen.safetensors', None), ('gen.npz', None), (files['ipmnet'], 'a')):
    found = read(tmp_path / file, key)
    assert found.keys() == state.keys()
    for name, tensor in state.items():
      np.testing.assert_array_equal(found[name], tensor, err_msg=name)
  other = read(files['ipmnet'], 'b')
  np.testing.assert_array_equal(other['mlp.model.0.fc.bias'], 1 - state['mlp.model.0.fc.bias'])


def _cut(path, files, system):
  path.write_bytes(files[system].read_bytes()[:-40])


def _foreign(path, files, system):
  path.write_bytes(files['beautygan' if system == 'ipmnet' else 'ipmnet'].read_bytes())


def _judges(path, files, system):
  name = {'ipmnet': 'a.cnns.0.0.conv.weight', 'beautygan': 'main.0.weight_bar'}[system]
  with path.open('wb') as file:
    np.savez(file, **{name: np.zeros((4, 3, 4, 4), np.float32)})


@pytest.mark.parametrize('system', MODULES)
@pytest.mark.parametrize(
  ('write', 'options', 'message'),
  [
    (_cut, {}, 'damaged or incomplete'),
    (_foreign, {}, r'no {}_generator checkpoint: \d+ missing: .*; \d+ unexpected'),
    (
      _judges,
      {},
      r'no {}_generator checkpoint: \d+ missing: .*; 1 unexpected: (cnns.0.0.conv.weight|main.0.weight_bar)',
    ),
    (_foreign, {'key': 'ema'}, "no entry 'ema'; it has "),
    (_foreign, {'workdir': None}, 'say which one to make: --workdir'),
  ],
)
def test_another_file_is_refused_in_one_line(tmp_path, files, system, write, options, message):
  write(tmp_path / 'weights.pth', files, system)
  with pytest.raises(UserError, match=message.format(system)) as caught:
    _convert(system, tmp_path / 'weights.pth', **{'workdir': tmp_path / 'run', **options})
  assert '\n' not in str(caught.value)
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  'words', [('--workdir', 'run'), ('--key', 'ema'), ('--image-size', '7'), ('--config', 'x.py'), ('--config.seed=7',)]
)
def test_what_a_network_of_a_metric_has_no_use_for_is_refused(words, capsys):
  assert main(['convert', 'vgg19', 'vgg.pth', *words]) == 2
  assert words[0].split('.')[0] in capsys.readouterr().err


def test_all_that_is_said_reaches_the_converter(monkeypatch):
  asked = []
  monkeypatch.setattr(command, 'convert', lambda *words, **options: asked.append((words, options)))
  words = ['convert', 'bisenet', 'a.pth', 'b.pth', '--workdir', 'run', '--key', 'ema', '--image-size', '96']
  assert main([*words, '--config', str(REPOSITORY / 'experiments/bisenet.py'), '--config.seed=7']) == 0
  ((words, options),) = asked
  assert words == ('bisenet', Path('a.pth'), Path('run'))
  assert (options['key'], options['image_size'], options['more']) == ('ema', 96, [Path('b.pth')])
  assert options['make_config']('celebamask_hq').seed == 7


FIRST_STAGE = VQGAN(64, (1, 1, 1), num_blocks=2, codebook_size=8)
SDM = SDMUNet(64, (1,), num_blocks=2, attention_factors=(), head_channels=16, spade_hidden=4)


def _drawn(module, *inputs):
  shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)['params']
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), shapes)


def test_a_first_stage_is_taken_from_a_whole_latent_diffusion(tmp_path, capsys):
  params = _drawn(FIRST_STAGE, np.zeros((1, 8, 8, 3), np.float32))
  own = convert.to_reference('vqgan', {'params': params})
  whole = {f'first_stage_model.{name}': tensor for name, tensor in own.items()}
  save_torch(tmp_path / 'ldm.ckpt', {'state_dict': {**whole, 'betas': np.ones(3, np.float32)}})
  _convert('vqgan', tmp_path / 'ldm.ckpt', tmp_path / 'run', ['--config.ema_decay=0.9'], image_size=32)
  run = load_run(tmp_path / 'run')
  assert run.engine.task.model.clone(codebook_spread=None) == FIRST_STAGE
  assert run.config.model.image_size == 32
  # The averaged ones; the report's parity is of the others.
  jax.tree.map(np.testing.assert_array_equal, run.state.params, {'generator': params})
  report = json.loads((tmp_path / 'run' / 'convert.json').read_text())
  assert report['parity']['tensors compared'] == report['tensors'] == len(own)
  assert report['parity']['largest difference'] == 0
  assert '--config.first_stage.workdir=' in capsys.readouterr().out
  # With the discriminator beside it, as a training saves it, and under no prefix, it is the same.
  np.savez(tmp_path / 'vq.npz', **own, **{'loss.discriminator.main.0.bias': np.zeros(4)})
  for file in ('ldm.ckpt', 'vq.npz'):
    found = convert.from_reference('vqgan', WORKDIRS['vqgan'].read(tmp_path / file, None))
    jax.tree.map(np.testing.assert_array_equal, found[1]['params'], params)


def _sdm(module):
  y = np.zeros((1, 8, 8, module.num_classes + 1), np.float32)
  return _drawn(module, np.zeros((1, 8, 8, 3), np.float32), np.zeros(1, np.int32), y)


def test_sdm_becomes_a_workdir_that_opens(tmp_path, capsys):
  params = _sdm(SDM)
  np.savez(tmp_path / 'sdm.npz', **convert.to_reference('sdm_unet', {'params': params}))
  _convert('sdm', tmp_path / 'sdm.npz', tmp_path / 'run', ['--config.model.head_channels=16'])
  run = load_run(tmp_path / 'run')
  assert run.engine.task.unet == SDM
  assert run.config.sampling.guidance == 1.5
  jax.tree.map(np.testing.assert_array_equal, run.state.params, {'unet': params})
  with Checkpoints(tmp_path / 'run', read_only=True) as checkpoints:
    saved = checkpoints.load_state(0, run.engine.abstract_saved)
  jax.tree.map(np.testing.assert_array_equal, saved.params, saved.ema)
  report = json.loads((tmp_path / 'run' / 'convert.json').read_text())
  assert report['parity']['tensors compared'] == report['tensors'] == len(jax.tree.leaves(params))
  assert report['parity']['largest difference'] == 0
  assert 'jaxface synthesize --workdir' in capsys.readouterr().out


@pytest.mark.parametrize(
  ('module', 'message'),
  [
    (SDM.clone(num_classes=5), 'this denoiser has 5 classes; only 19'),
    (SDM.clone(learn_sigma=False), 'predicts the noise alone'),
  ],
)
def test_other_denoisers_are_no_sdm(tmp_path, module, message):
  np.savez(tmp_path / 'sdm.npz', **convert.to_reference('sdm_unet', {'params': _sdm(module)}))
  with pytest.raises(UserError, match=message):
    _convert('sdm', tmp_path / 'sdm.npz', tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_a_vae_without_a_mask_decoder_becomes_a_workdir_that_opens(tmp_path):
  module = FaceMaskVAE(20, *stage_widths(20, 1 / 16), latent_dim=32, sampling='reference').clone(mask_widths=())
  shapes = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, 20, 20, 3), np.float32))
  state = convert.to_reference('vae', jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes))
  with h5py.File(tmp_path / 'weights.h5', 'w') as file:
    write_keras(file, state)
  _convert('vae', tmp_path / 'weights.h5', tmp_path / 'run')
  run = load_run(tmp_path / 'run')
  assert (run.engine.task.model.mask_widths, run.config.model.sampling) == ((), 'reference')


@pytest.mark.parametrize('value', [np.nan, 1e300, 'a', 1j])
def test_what_is_no_finite_float32_number_is_refused_by_its_name(value):
  state = _state('beautygan')
  name = next(iter(state))
  state[name] = np.full(state[name].shape, value)
  with pytest.raises(UserError, match=name.replace('.', r'\.')):
    convert.from_reference('beautygan_generator', state)
