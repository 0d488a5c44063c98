"""What networks of pictures refuse."""

import jax
import jax.numpy as jnp
import pytest

from jaxface.errors import UserError
from jaxface.models.beautygan import BeautyGenerator
from jaxface.models.bisenet import BiSeNet
from jaxface.models.inception import InceptionFeatures
from jaxface.models.ipmnet import IPMNet
from jaxface.models.resnet50_face import preprocess
from jaxface.models.vae import FaceMaskVAE
from jaxface.models.vqgan import VQGAN

PICTURES = jnp.zeros((1, 32, 32, 3), jnp.uint8)
KEY = jax.random.key(0)


@pytest.mark.parametrize(
  'take',
  [
    lambda: FaceMaskVAE().init(KEY, jnp.zeros((1, 144, 144, 3), jnp.uint8), method='encode'),
    lambda: BiSeNet().init(KEY, PICTURES),
    lambda: InceptionFeatures().init(KEY, PICTURES),
    lambda: VQGAN().init(KEY, PICTURES, method='encode'),
    lambda: BeautyGenerator().init(KEY, PICTURES, PICTURES / 255),
    lambda: BeautyGenerator().init(KEY, PICTURES / 255, PICTURES),
    lambda: IPMNet().init(KEY, PICTURES, method='encode_style'),
    lambda: IPMNet().init(KEY, PICTURES, method='encode_content'),
    lambda: preprocess(PICTURES),
  ],
)
def test_whole_numbers_are_no_pictures(take):
  with pytest.raises(UserError, match='uint8 pictures given to .*; give floats, for instance uint8 divided by 255'):
    jax.eval_shape(take)
