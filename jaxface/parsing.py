"""The face parser in use: pictures of any size in, label maps of their own sizes out."""

# B batch | S the network's picture size | h,w a picture's size | H,W size of the bucket it lies in | K classes

import functools
import hashlib
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from PIL import Image

from jaxface import labels
from jaxface.area import by_pillow
from jaxface.errors import UserError
from jaxface.meshes import on_host
from jaxface.models.bisenet import BiSeNet, normalise
from jaxface.parallel import BATCH_AXES, make_mesh
from jaxface.runs import load_run
from jaxface.state import PyTree
from jaxface.threads import chunks
from jaxface.workdir import read_config

# Sides of the label maps that devices make; each pair of sides that occurs is compiled once.
BUCKETS = (128, 256, 512, 1024)
# On a CPU a batch is no faster than its pictures one by one, and a single photo should not wait for fifteen others.
_PER_ACCELERATOR = 16
# Batches on the devices at once: the next one is there when one is done.
_IN_FLIGHT = 2

Size = tuple[int, int]  # Height and width.


class Parser:
  """A trained BiSeNet as a function of pictures; threads may share it.

  As in the public code, a picture is resized to the network's own square size (bilinear with antialiasing), whatever
  its aspect ratio. The class scores are resized (bilinear, half-pixel centres) to the picture's size before the best
  class is taken, so that edges are smooth. Where a picture is longer than the largest of `BUCKETS`, that is done at
  this length, and the label map enlarged by the nearest pixel.

  Args:
    model: the network.
    variables: its 'params' and 'batch_stats'.
    image_size: S, height and width that the network sees.
    label_order: order of the network's classes, a name of `jaxface.labels.ORDERS`.
    name: where the network comes from, for people.

  Attributes:
    batch_size: pictures of one program run, on all devices of this process: one a CPU, 16 an accelerator.
  """

  def __init__(
    self,
    model: BiSeNet,
    variables: PyTree,
    *,
    image_size: int,
    label_order: str,
    name: str = '',
  ):
    mesh = make_mesh(devices=jax.local_devices())
    self.batch_size = mesh.size * (1 if jax.default_backend() == 'cpu' else _PER_ACCELERATOR)
    self.image_size = image_size
    self.label_order = label_order
    self.name = name
    self._dtype = jnp.dtype(model.dtype).name
    self._rows = NamedSharding(mesh, P(BATCH_AXES))
    self._variables = jax.device_put(variables, NamedSharding(mesh, P()))
    # Each device works on its own pictures; nothing is exchanged.
    share = functools.partial(jax.shard_map, mesh=mesh, out_specs=P(BATCH_AXES))
    self._scores = jax.jit(share(functools.partial(_scores, model), in_specs=(P(), P(BATCH_AXES))))
    self._label_maps = jax.jit(
      lambda scores, sizes, bucket: share(functools.partial(_label_maps, bucket=bucket), in_specs=P(BATCH_AXES))(
        scores, sizes
      ),
      static_argnums=2,
    )
    # Two threads that meet a new bucket would both compile it.
    self._dispatching = threading.Lock()

  @functools.cached_property
  def weights_hash(self) -> str:
    """SHA-256 of the network's weights and moving statistics: names, shapes and values."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(self._variables)[0]:
      values = np.ascontiguousarray(leaf)
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      digest.update(f'{name} {values.shape} {values.dtype}'.encode())
      digest.update(values.tobytes())
    return digest.hexdigest()

  @property
  def identity(self) -> str:
    """All that a label map depends on beside its picture, in a line."""
    return f'BiSeNet {self.weights_hash[:16]} at {self.image_size} px, {self.label_order} order, {self._dtype}'

  @property
  def origin(self) -> dict[str, str | int]:
    """A record of the parser, in JSON's types, to lie beside what it has made."""
    return {
      'name': self.name,
      'weights_sha256': self.weights_hash,
      'image_size': self.image_size,
      'label_order': self.label_order,
      'dtype': self._dtype,
    }

  def __call__(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Label maps of pictures, uint8 [h, w, 3] RGB of any sizes: uint8 [h, w] each, in the project's order."""
    if not images:
      return []
    with ThreadPoolExecutor() as executor:
      shrunk = list(executor.map(self.shrunk, images))
    return self.parse_shrunk(shrunk, [image.shape[:2] for image in images])

  def shrunk(self, image: np.ndarray) -> np.ndarray:
    """What the network sees of a picture: uint8 [h, w, 3] -> uint8 [S, S, 3]."""
    return by_pillow(image, (self.image_size, self.image_size), Image.Resampling.BILINEAR)

  def parse_shrunk(self, shrunk: Sequence[np.ndarray], sizes: Sequence[Size]) -> list[np.ndarray]:
    """Label maps, uint8 [h, w], of pictures that `shrunk` has made, [S, S, 3] each, at their own `sizes`."""
    label_maps, started = [], deque()
    for batch in chunks(zip(shrunk, sizes, strict=True), self.batch_size):
      images, batch_sizes = zip(*batch, strict=True)
      started.append((self._start(images, batch_sizes), batch_sizes))
      if len(started) == _IN_FLIGHT:
        label_maps += self._finish(*started.popleft())
    for batch in started:
      label_maps += self._finish(*batch)
    return label_maps

  def _start(self, images: Sequence[np.ndarray], sizes: Sequence[Size]) -> jax.Array:
    """Queues a batch on the devices; gives at once the array that its label maps will be in, uint8 [B, H, W]."""
    missing = self.batch_size - len(images)
    images_BSS3 = np.stack([*images, *[images[-1]] * missing])
    made_B2 = np.array([_made(size) for size in (*sizes, *[sizes[-1]] * missing)], np.int32)
    bucket = tuple(next(side for side in BUCKETS if side >= longest) for longest in made_B2.max(0))
    with self._dispatching:
      scores = self._scores(self._variables, jax.device_put(images_BSS3, self._rows))
      return self._label_maps(scores, jax.device_put(made_B2, self._rows), bucket)

  def _finish(self, label_maps: jax.Array, sizes: Sequence[Size]) -> list[np.ndarray]:
    table = labels.lookup_table(self.label_order)
    label_maps = np.asarray(label_maps)
    finished = []
    for label, (height, width), (made_height, made_width) in zip(label_maps, sizes, map(_made, sizes), strict=False):
      label = table[label[:made_height, :made_width]]
      if (height, width) != (made_height, made_width):
        label = np.asarray(Image.fromarray(label).resize((width, height), Image.NEAREST))
      finished.append(label)
    return finished


def _made(size: Size) -> Size:
  """The size that a picture's label map is made at: its own, or the same shape as long as the largest bucket."""
  shrink = min(1.0, BUCKETS[-1] / max(size))
  return max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink))


def _scores(model: BiSeNet, variables: PyTree, images_BSS3: jax.Array) -> jax.Array:
  """uint8 [B, S, S, 3] -> class scores, float32 [B, S, S, K]."""
  return model.apply(variables, normalise(images_BSS3.astype(jnp.float32) / 255), auxiliary=False).main


def _label_maps(scores_BSSK: jax.Array, sizes_B2: jax.Array, *, bucket: Size) -> jax.Array:
  """Scores resized to sizes that are known only at run time, and the best class: uint8 [B, *bucket].

  A label map fills the upper left of its bucket; what is beside it means nothing.
  """

  def one(example: tuple[jax.Array, jax.Array]) -> jax.Array:
    scores_SSK, size_2 = example
    low, high, share = _taps(scores_SSK.shape[0], size_2[0], bucket[0])
    share = share[:, None, None]
    scores_HSK = scores_SSK[low] * (1 - share) + scores_SSK[high] * share
    low, high, share = _taps(scores_SSK.shape[1], size_2[1], bucket[1])
    share = share[None, :, None]
    scores_HWK = scores_HSK[:, low] * (1 - share) + scores_HSK[:, high] * share
    return jnp.argmax(scores_HWK, -1).astype(jnp.uint8)

  # One after the other: the scores of a single large picture take 80 MB.
  return jax.lax.map(one, (scores_BSSK, sizes_B2))


def _taps(length: int, out_length: jax.Array, bucket: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Bilinear resizing of one axis, half-pixel centres: the two pixels that each comes from, the second's share."""
  position = (jnp.arange(bucket) + 0.5) * (length / out_length.astype(jnp.float32)) - 0.5
  position = jnp.clip(position, 0, length - 1)
  low = position.astype(jnp.int32)
  return low, jnp.minimum(low + 1, length - 1), position - low


def load_parser(workdir: Path, checkpoint: str = 'best') -> Parser:
  """The parser of a `jaxface train` run of task 'parsing', or of `jaxface convert bisenet`.

  Args:
    workdir: the run's folder.
    checkpoint: 'best' (by validation; the latest where nothing was validated), 'latest' or a step number.
  """
  task = read_config(workdir).task
  if task != 'parsing':
    raise UserError(
      f"{workdir} is a run of task {task!r}; a parser is one of task 'parsing': train it by `jaxface train --config "
      'experiments/bisenet.py:synthetic`, or make one of public weights by `jaxface convert bisenet`'
    )
  run = load_run(Path(workdir), checkpoint)
  return Parser(
    run.engine.task.model,
    # Restored for all processes, used by each on its own devices.
    on_host({'params': run.state.params, 'batch_stats': run.state.model_state}),
    image_size=run.config.model.image_size,
    label_order=run.config.model.label_order,
    name=f'{workdir}, step {run.step}',
  )
