"""Downloaded files become networks; what is missing or wrong is told with the way out."""

import hashlib
import json
import zipfile

import jax
import numpy as np
import pytest

from jaxface import weights
from jaxface.convert import inception, lpips
from jaxface.convert.command import convert
from jaxface.errors import UserError
from jaxface.metrics.lpips import CHANNELS
from jaxface.models.inception import InceptionFeatures
from tests.golden import load


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """The backbone's and the linear layers' tensors, as files."""
  folder = tmp_path_factory.mktemp('downloads')
  linear = {f'lin{tap}.model.1.weight': np.full((1, c, 1, 1), tap, 'f4') for tap, c in enumerate(CHANNELS['alex'])}
  np.savez(folder / 'alexnet.pth', **load('lpips/alex_64')[1])
  (folder / 'alexnet.pth.npz').rename(folder / 'alexnet.pth')
  np.savez(folder / 'alex.npz', **linear)
  return folder / 'alexnet.pth', folder / 'alex.npz'


def test_lpips_comes_back_as_it_was_made(files, tmp_path, monkeypatch, capsys):
  monkeypatch.setenv('JAXFACE_WEIGHTS', str(tmp_path / 'weights'))
  convert('lpips-alex', files[0], None, make_config=None, more=[files[1]])
  report = json.loads(capsys.readouterr().out)
  assert report['written'] == str(tmp_path / 'weights' / 'lpips-alex.npz')
  network = weights.load('lpips-alex')
  state = {name: array for file in files for name, array in np.load(file).items()}
  module, variables = lpips.from_reference(state)
  assert network.module == module
  jax.tree.map(np.testing.assert_array_equal, network.variables, variables)
  assert network.files == report['files'] == {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
  assert f'alex.npz sha256:{network.files["alex.npz"][:8]}' in str(network)


def test_linear_weights_are_found_in_a_wheel_and_the_order_of_files_does_not_matter(files, tmp_path):
  wheel = tmp_path / 'lpips-0.1.4-py3-none-any.whl'
  with zipfile.ZipFile(wheel, 'w') as archive:
    archive.write(files[1], 'lpips/weights/v0.1/alex.pth')
  weights.register('lpips-alex', [wheel, files[0]], tmp_path)
  network = weights.load('lpips-alex', tmp_path)
  assert network.files['lpips/weights/v0.1/alex.pth'] == hashlib.sha256(files[1].read_bytes()).hexdigest()
  np.testing.assert_array_equal(network.variables['params']['tap3'], np.full(256, 3))
  with pytest.raises(UserError, match='no lpips/weights/v0.1/vgg.pth in it'):
    weights.register('lpips-vgg', [wheel, files[0]], tmp_path)


def test_inception_is_made_of_one_file(tmp_path, monkeypatch):
  # The whole conversion has its own tests, and takes seconds.
  halved = lambda state: (InceptionFeatures(), {'params': {'stem': {'kernel': state['a.conv.weight'] / 2}}})
  monkeypatch.setattr(inception, 'from_reference', halved)
  np.savez(tmp_path / 'pt_inception.npz', **{'a.conv.weight': np.arange(4.0)})
  weights.register('inception', [tmp_path / 'pt_inception.npz'], tmp_path)
  network = weights.load('inception', tmp_path)
  assert network.module == InceptionFeatures()
  np.testing.assert_array_equal(network.variables['params']['stem']['kernel'], [0, 0.5, 1, 1.5])


def test_what_is_missing_is_told_with_the_way_out(files, tmp_path):
  command = r'JAXFACE_WEIGHTS=\S+ jaxface convert lpips-vgg vgg16-397923af.pth lpips-0.1.4-py3-none-any.whl'
  with pytest.raises(UserError, match=rf"lpips-vgg.npz is missing: download vgg16.*torchvision's.*`{command}`"):
    weights.load('lpips-vgg', tmp_path)
  with pytest.raises(UserError, match='download pt_inception-2015-12-05-6726825d.pth'):
    weights.load('inception', tmp_path)
  (tmp_path / 'inception.npz').write_bytes(b'PK')
  with pytest.raises(UserError, match='inception.npz is damaged: download'):
    weights.load('inception', tmp_path)
  with pytest.raises(UserError, match='lpips-alex is made of 2 files, not 1'):
    weights.register('lpips-alex', files[:1], tmp_path)
  with pytest.raises(UserError, match='no such file'):
    weights.register('lpips-alex', [files[0], tmp_path / 'alex.pth'], tmp_path)
  with pytest.raises(UserError, match='these tensors are no inception checkpoint'):
    weights.register('inception', files[:1], tmp_path)
  with pytest.raises(UserError, match=r"unknown network 'vgg'; choose from lpips-alex"):
    weights.load('vgg', tmp_path)
