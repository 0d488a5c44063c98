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
