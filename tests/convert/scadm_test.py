"""Whole SCA-DM checkpoints, there and back and as workdirs; files that hold something else are told from them."""

import collections
import functools
import json
import pickle

import jax
import numpy as np
import pytest

from jaxface import convert
from jaxface.checkpoint import Checkpoints
from jaxface.cli import load_config
from jaxface.convert import scadm
from jaxface.convert.command import convert as convert_file
from jaxface.convert.command import default_experiment
from jaxface.diffusion.schedule import make_schedule
from jaxface.errors import UserError
from jaxface.models.scadm import Conditioning, SCAUNet
from jaxface.models.style_encoder import StyleEncoder
from jaxface.models.vqgan import VQGAN
from jaxface.runs import load_run
from tests.convert.command_test import save_torch
from tests.smoke import REPOSITORY

# They differ in every size from the smoke configurations.
UNET = SCAUNet(model_channels=64, multipliers=(1,), num_blocks=2, attention_factors=(), context_dim=6, spade_hidden=4)
STYLE = StyleEncoder(width=1, token_dim=6, num_downsamples=2)
FIRST_STAGE = VQGAN(64, (1, 1, 1), num_blocks=1, codebook_size=8)

NAMES = 'scadm', 'scadm_first_stage'

_same = functools.partial(jax.tree.map, np.testing.assert_array_equal)


def _drawn(module, seed, *inputs):
  shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)['params']
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), shapes)


@functools.cache
def variables():
  """Random ones of the three networks, and other ones for the averaged UNet."""
  image, label = np.zeros((1, 8, 8, 3), np.float32), np.zeros((1, 8, 8), np.int32)
  given = np.zeros((1, 4, 4, 3), np.float32), np.zeros(1, np.int32), Conditioning(np.zeros((1, 19, 6)), label)
  params = {
    'unet': _drawn(UNET, 0, *given),
    'style': _drawn(STYLE, 1, image, label),
    'first_stage': _drawn(FIRST_STAGE, 2, image),
  }
  return {'params': params, 'ema': {'unet': _drawn(UNET, 3, *given)}}


@functools.cache
def _state():
  betas = np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2
  return convert.to_reference('scadm', variables()) | {
    'betas': betas.astype(np.float32),
    'alphas_cumprod': np.cumprod(1 - betas).astype(np.float32),
    'logvar': np.zeros(1000, np.float32),
    'model_ema.decay': np.full((), 0.9999, np.float32),
    'model_ema.num_updates': np.full((), 7, np.int32),
  }


def state():
  """As the public code saves it, with its schedule and the averaging's counters."""
  return dict(_state())


def test_all_parts_come_back_and_what_is_no_network_tells_its_use():
  tensors = state() | {'scale_factor': np.float32(0.5)}
  modules, found = convert.from_reference('scadm', tensors)
  assert modules[:3] == (UNET, STYLE, FIRST_STAGE)
  assert modules.scale == 0.5
  np.testing.assert_array_equal(modules.betas, tensors['betas'])
  assert found.keys() == {'params', 'ema'}
  _same(found, variables())

  alone = {name: tensor for name, tensor in tensors.items() if not name.startswith(('model_ema.', 'betas', 'scale'))}
  modules, found = convert.from_reference('scadm', {f'module.{name}': tensor for name, tensor in alone.items()})
  assert (modules.betas, modules.scale) == (None, 1)
  assert found.keys() == {'params'}
  _same(found['params'], variables()['params'])


def test_names_are_the_public_ones():
  tensors = state()
  names = {
    'model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_out.0.weight',
    'model_ema.diffusion_modelmiddle_block1transformer_blocks0attn2to_out0weight',
    'model_ema.diffusion_modellabel_embweight',
    'cond_stage_model.Encoder.enc_layer_0.0.weight',
    'first_stage_model.quantize.embedding.weight',
  }
  assert names <= tensors.keys()
  # All of the averaged copy have lost their dots, and none its likeness.
  unet, averaged = ([name for name in tensors if name.startswith(p)] for p in ('model.', 'model_ema.diffusion'))
  assert len(unet) == len(averaged)
  assert not any('.' in name.removeprefix('model_ema.') for name in averaged)


def test_the_first_stage_is_found_in_a_whole_file_and_in_its_own():
  own = convert.to_reference('vqgan', {'params': variables()['params']['first_stage']})
  for tensors in (state(), own):
    _same(scadm.first_stage_of(tensors), own)


def _without(tensors, prefix):
  return {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}


def _of_another_width(tensors):
  style = _drawn(STYLE.clone(token_dim=5), 0, np.zeros((1, 8, 8, 3), np.float32), np.zeros((1, 8, 8), np.int32))
  return tensors | convert.to_reference('scadm', {'params': {'style': style}})


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda t: {**t, 'lora': t['betas']}, 'no scadm checkpoint: 1 unexpected: lora$'),
    (lambda t: _without(t, 'cond_stage'), r'no scadm checkpoint: 1 missing: cond_stage_model\.\*$'),
    (scadm.first_stage_of, r'no scadm checkpoint: 3 missing: model\.diff.*; \d+ unexpected: encoder'),
    (lambda t: _without(t, 'first_stage_model.quant_conv'), 'no vqgan checkpoint: 2 missing: quant_conv.weight'),
    (
      lambda t: _without({**t, 'model_ema.diffusion_modelx': t['betas']}, 'model_ema.diffusion_modelout2bias'),
      'no scadm_unet checkpoint: 1 missing: out.2.bias; 1 unexpected: model_ema.diffusion_modelx$',
    ),
    (_of_another_width, 'no scadm checkpoint: 6 numbers in a style in the UNet, 5 in the style encoder'),
  ],
)
def test_misfits_are_told_in_one_line(change, message):
  with pytest.raises(UserError, match=message) as caught:
    convert.from_reference('scadm', change(state()))
  assert '\n' not in str(caught.value)


def _convert(file, workdir, *overrides, **options):
  """On the smoke configurations; no tensor tells the channels of an attention head."""
  words = [f'--config.{word}' for word in ('model.head_channels=16', *overrides)]
  config = lambda system, variant, words: load_config(
    f'{REPOSITORY / default_experiment(system)}:{variant},smoke', words
  )
  convert_file(
    'scadm',
    file,
    workdir,
    make_config=lambda variant: config('scadm', variant, words),
    make_first_stage=lambda variant: config('vqgan', variant, []),
    **options,
  )


@pytest.fixture(scope='module')
def file(tmp_path_factory):
  """A checkpoint of Lightning: the tensors, and much beside them, some of it under classes of other packages."""
  path = tmp_path_factory.mktemp('weights') / 'last.ckpt'
  beside = {
    'epoch': 235,
    'global_step': 137_000,
    'pytorch-lightning_version': '1.4.2',
    'callbacks': {pickle.PickleBuffer: {'monitor': 'val/loss', 'best_model_score': np.float32([0.1])}},
    'optimizer_states': [{'state': {0: {'step': 7, 'exp_avg': np.ones(3, np.float32)}}, 'param_groups': []}],
    'lr_schedulers': [],
  }
  tensors = {name: tensor for name, tensor in state().items() if 'num_updates' not in name}
  # Not the published ones, which a configuration has by itself.
  tensors['scale_factor'] = np.array(0.5, np.float32)
  tensors['betas'] = make_schedule('linear', start=1e-4, end=0.02).betas.astype(np.float32)
  save_torch(path, {**beside, 'state_dict': collections.OrderedDict(tensors)})
  return path


def test_a_file_of_lightning_becomes_two_workdirs_that_open(tmp_path, file, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  _convert(file, 'runs/scadm')
  run, expected = load_run('runs/scadm'), variables()['params']
  config, task = run.config, run.engine.task
  assert config.first_stage.workdir == 'runs/scadm_first_stage'
  assert (config.sampling.name, config.sampling.guidance) == ('ddim', 1)
  assert dict(config.schedule) == {'name': 'linear', 'start': 0.0001, 'end': 0.02}
  assert (task.unet.clone(context_dim=6), task.style_encoder) == (UNET.clone(head_channels=16), STYLE)
  assert (task.first_stage.model.clone(codebook_spread=None), task.first_stage.scale) == (FIRST_STAGE, 0.5)
  # Of the UNet evaluation takes the averaged copy.
  _same(run.state.params, {'unet': variables()['ema']['unet'], 'style': expected['style']})
  _same(run.state.frozen, {'first_stage': expected['first_stage']})
  with Checkpoints('runs/scadm', read_only=True) as checkpoints:
    saved = checkpoints.load_state(0, run.engine.abstract_saved)
  _same(saved.params, {name: expected[name] for name in ('unet', 'style')})

  report, beside = (json.loads((tmp_path / 'runs' / name / 'convert.json').read_text()) for name in NAMES)
  assert report['parity']['tensors compared'] == sum(len(jax.tree.leaves(t)) for t in (saved.params, saved.ema['unet']))
  assert beside['parity']['tensors compared'] == len(jax.tree.leaves(expected['first_stage']))
  assert report['parity']['largest difference'] == beside['parity']['largest difference'] == 0
  assert 'jaxface synthesize --workdir runs/scadm --labels' in capsys.readouterr().out
  with pytest.raises(UserError, match='runs/scadm already holds checkpoints'):
    _convert(file, 'runs/scadm')


@pytest.mark.parametrize(
  ('overrides', 'options', 'message'),
  [
    (['ema_decay=0'], {}, 'has an averaged copy and the configuration none; leave config.ema_decay'),
    ([], {'key': 'ema'}, "no entry 'ema'; it has "),
    ([], {'file': 'betas.npz'}, '1000 betas from 0.0001 to 0.02; known are scaled_linear, linear'),
    ([], {'file': 'unet.npz'}, r'no scadm checkpoint: 2 missing: cond_stage_model\.\*, first_stage_model\.\*$'),
  ],
)
def test_what_cannot_become_a_workdir_leaves_none(tmp_path, file, overrides, options, message):
  np.savez(tmp_path / 'betas.npz', **state() | {'betas': np.geomspace(1e-4, 0.02, 1000)})
  np.savez(tmp_path / 'unet.npz', **{name: tensor for name, tensor in state().items() if name.startswith('model.')})
  with pytest.raises(UserError, match=message):
    _convert(tmp_path / options.pop('file', file), tmp_path / 'run', *overrides, **options)
  assert sorted(path.name for path in tmp_path.iterdir()) == ['betas.npz', 'unet.npz']
