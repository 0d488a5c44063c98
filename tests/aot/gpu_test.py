"""GPUs that are not there: their links and peaks, and JAX's CUDA plugin where it is installed."""

import importlib.util
import json

import jax
import pytest

from jaxface.aot import gpu, hlo
from jaxface.aot.roofline import roofline
from jaxface.aot.topology import Topology
from jaxface.chips import CHIPS
from jaxface.cli import main
from jaxface.models.attention import attend
from tests.aot.command_test import say
from tests.smoke import EXPERIMENT

PLUGIN = any(importlib.util.find_spec(f'jax_cuda{version}_plugin') for version in (12, 13))


def test_a_nodes_gpus_have_one_way_each_to_the_others():
  node = Topology('h200:8', (8,), 1, [None] * 8, CHIPS['NVIDIA H200'])
  assert (node.is_gpu, node.chips, node.torus) == (True, 8, (2,))
  exchange = hlo.Collective('all-reduce', 10**9, False, '')
  found = roofline(flops=0.0, bytes_moved=0.0, exchanges=[exchange], chip=node.chip, dtype='bfloat16', torus=node.torus)
  assert found.exposed == pytest.approx(2 * 1e9 / 450e9)


@pytest.mark.parametrize('name', list(gpu.GPUS))
def test_every_gpu_has_its_peaks(name):
  chip = CHIPS[gpu.GPUS[name].kind]
  assert f'memory_bandwidth: {chip.bandwidth:.0f}' in gpu.target_config(gpu.GPUS[name], chip.memory, chip.bandwidth)


@pytest.mark.skipif(PLUGIN, reason="JAX's plugin for CUDA is installed")
def test_without_the_plugin_it_says_how_to_get_it(capsys):
  assert main(['compile', '--config', f'{EXPERIMENT}:mask_l1,smoke', '--topology', 'h200:2']) == 2
  assert "pip install 'jaxface[cuda]'" in capsys.readouterr().err


@pytest.mark.skipif(not PLUGIN, reason="JAX's plugin for CUDA is not installed: pip install .[cuda]")
def test_a_step_compiles_for_a_node_of_gpus(tmp_path):
  out = tmp_path / 'found.json'
  done = say(
    '--config', f'{EXPERIMENT}:nomask_l2,smoke', '--topology', 'h200:2', '--sweep', 'h200:4', '--out', str(out)
  )
  assert done.returncode == 0, done.stderr
  two, four = json.loads(out.read_text())
  assert (two['chips'], two['batch_size'], four['batch_size']) == (2, 8, 16)
  assert four['flops'] == pytest.approx(two['flops'], rel=0.01)
  # Sums of gradients, and BatchNorm's moments, as many as it keeps; no device sees another's pictures.
  for each in (two, four):
    assert set(each['exchanges']) == {'all-reduce', 'all-gather'}
    assert each['exchanges']['all-gather']['bytes'] <= each['chips'] * each['memory_bytes']['other']


@pytest.mark.skipif(not PLUGIN, reason="JAX's plugin for CUDA is not installed: pip install .[cuda]")
@pytest.mark.parametrize(('dtype', 'fused'), [('bfloat16', True), ('float32', False)])
def test_attention_of_16_bits_is_fused(dtype, fused):
  x = jax.ShapeDtypeStruct((2, 64, 4, 32), dtype)
  program = jax.jit(attend).trace(x, x, x).lower(lowering_platforms=('cuda',)).as_text()
  assert ('fmhaSoftmax' in program) == fused


def test_the_compiler_is_told_the_data_sheet():
  told = gpu.target_config(gpu.GPUS['a100-40g'], 40e9, 1555e9)
  for words in ('minor: 0', 'core_count: 108 fpus_per_core: 64 ', 'device_memory_size: 40000000000 '):
    assert words in told
  told = gpu.target_config(gpu.GPUS['h100'], 80e9, 3350e9)
  for words in ('major: 9', 'core_count: 132 fpus_per_core: 128 ', 'shared_memory_per_block_optin: 232448'):
    assert words in told


@pytest.mark.parametrize(
  ('kind', 'bfloat16', 'float32', 'memory', 'bandwidth', 'link'),
  [
    ('TPU v4', 275, 275, 32 * 2**30, 1228, 45),
    ('TPU v5 lite', 197, 197, 16 * 2**30, 819, 45),
    ('TPU v5', 459, 459, 95 * 2**30, 2765, 90),
    ('TPU v6 lite', 918, 918, 32 * 2**30, 1640, 90),
    ('NVIDIA A100-SXM4-40GB', 312, 156, 40e9, 1555, 300),
    ('NVIDIA A100-SXM4-80GB', 312, 156, 80e9, 2039, 300),
    ('NVIDIA H100 80GB HBM3', 989, 495, 80e9, 3350, 450),
    ('NVIDIA H200', 989, 495, 141e9, 4800, 450),
  ],
)
def test_peaks_are_those_of_the_data_sheets(kind, bfloat16, float32, memory, bandwidth, link):
  chip = CHIPS[kind]
  assert (chip.peak('bfloat16'), chip.peak('float32')) == (bfloat16 * 1e12, float32 * 1e12)
  assert (chip.memory, chip.bandwidth, chip.link) == (memory, bandwidth * 1e9, link * 1e9)
