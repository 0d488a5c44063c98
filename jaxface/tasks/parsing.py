"""The face parser (BiSeNet), trained as the public code does: losses, augmentation, train step, figures, pictures.

One thing is mended: there, a mirrored picture keeps its left and right labels.
"""

# B batch | S picture size | K classes

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from ml_collections import ConfigDict

from jaxface import labels
from jaxface.augment import Augment, scaled_crop, to_float
from jaxface.errors import UserError
from jaxface.metrics import pixel, segmentation
from jaxface.models.bisenet import BiSeNet, Logits, normalise, widths
from jaxface.ohem import ohem_cross_entropy, pixel_cross_entropy
from jaxface.optimizers import make_optimizer
from jaxface.state import PyTree, TrainState, first_state
from jaxface.tasks.gradients import update
from jaxface.tasks.task import Batch, Compared, Metrics, coloured, compute_dtype, row_keys

# How much of an overlay is the picture.
_OVERLAY = 0.45


# What Pillow's ImageEnhance.Brightness, Contrast and Color blend a picture with; in the published order.
_PLAINER = {'brightness': jnp.zeros_like, 'contrast': lambda image: pixel.luma(image).mean(), 'saturation': pixel.luma}


def enhanced(image: jax.Array, kind: str, factor: jax.Array | float) -> jax.Array:
  """One picture, float [H, W, 3] in [0, 1], as Pillow's ImageEnhance changes it, but for its rounding to 8 bits.

  Kinds are 'brightness', 'contrast' (about one grey, the mean of the picture's luma) and 'saturation' (about the luma
  of each pixel). Factor 1 leaves it as it is; results are clipped to [0, 1].
  """
  plainer = _PLAINER[kind](image)
  return jnp.clip(plainer + factor * (image - plainer), 0, 1)


@dataclasses.dataclass(frozen=True)
class ParsingLoss:
  """OHEM cross-entropy (see `ohem_cross_entropy`) of the main and of both auxiliary heads, of equal weight.

  Attributes:
    threshold: probability of a pixel's own class under which the pixel is hard.
    least_share: of the batch's pixels, those that count at least.
    axis_name: `pmap` axis over which a batch is spread.
  """

  threshold: float = 0.7
  least_share: float = 1 / 16
  axis_name: str | None = None

  def __post_init__(self) -> None:
    for name in ('threshold', 'least_share'):
      if not 0 < getattr(self, name) < 1:
        raise UserError(f'loss.{name}={getattr(self, name)}; it must lie between 0 and 1')

  def __call__(self, logits: Logits, label: jax.Array) -> tuple[jax.Array, Metrics]:
    """Loss of a batch and its terms; `label` [B, H, W] in the order of the network's classes."""
    pixels = label.size * (1 if self.axis_name is None else lax.axis_size(self.axis_name))
    options = {
      'threshold': self.threshold,
      'least': max(int(pixels * self.least_share), 1),
      'axis_name': self.axis_name,
    }
    terms = {name: ohem_cross_entropy(head, label, **options) for name, head in logits._asdict().items()}
    loss = sum(terms.values())
    return loss, {'loss': loss, **terms}


@dataclasses.dataclass(frozen=True)
class ParsingAugment:
  """The published augmentation, in its order: colour, mirroring, scale, crop; every row by its own key.

  Attributes:
    crop_size: side of what the network is trained on.
    scales: one of which the picture is enlarged by, or as much as the crop needs; antialiased where that is below 1.
    flip: mirror half of the pictures; left and right labels change places.
    brightness, contrast, saturation: factors of `enhanced` are drawn from U(1 - x, 1 + x); 0 for no change.
  """

  crop_size: int
  scales: tuple[float, ...] = (1.0,)
  flip: bool = False
  brightness: float = 0.0
  contrast: float = 0.0
  saturation: float = 0.0

  def __post_init__(self) -> None:
    if not self.scales or min(self.scales) <= 0:
      raise UserError(f'augment.scales={self.scales}; give one or more numbers above 0')
    if self.crop_size < 32:
      raise UserError(f'augment.crop_size={self.crop_size} is too small for the parser; give at least 32')

  def __call__(self, batch: Batch, keys: jax.Array) -> Batch:
    """'image' float [B, S, S, 3] in [0, 1] and 'label' [B, S, S] -> both with sides of `crop_size`; keys [B]."""
    colour_keys, flip_keys, crop_keys = jax.vmap(lambda key: jax.random.split(key, 3))(keys).T
    batch = {**batch, 'image': jax.vmap(self._recolour)(batch['image'], colour_keys)}
    batch = Augment(flip=self.flip)(batch, flip_keys)
    if self.scales == (1.0,) and batch['image'].shape[1] == self.crop_size:
      return batch
    image, label = jax.vmap(self._scale_and_crop)(batch['image'], batch['label'], crop_keys)
    return {**batch, 'image': image, 'label': label}

  def _recolour(self, image: jax.Array, key: jax.Array) -> jax.Array:
    for kind, kind_key in zip(_PLAINER, jax.random.split(key, len(_PLAINER)), strict=True):
      if width := getattr(self, kind):
        image = enhanced(image, kind, jax.random.uniform(kind_key, (), minval=1 - width, maxval=1 + width))
    return image

  def _scale_and_crop(self, image: jax.Array, label: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    scale_key, *offset_keys = jax.random.split(key, 3)
    size = image.shape[0]
    scale = jnp.maximum(jax.random.choice(scale_key, jnp.array(self.scales)), self.crop_size / size)
    room = jnp.floor(scale * size + 1e-3) - self.crop_size
    offset = jnp.stack([jnp.floor(jax.random.uniform(k) * (room + 1)) for k in offset_keys])
    return scaled_crop(image, label, scale, offset, self.crop_size)


@dataclasses.dataclass(frozen=True)
class ParsingTask:
  """Training, evaluation and pictures of the face parser.

  `label_order` names the order of the network's classes; batches and results are in the project's own.
  """

  model: BiSeNet
  loss: ParsingLoss
  optimizer: optax.GradientTransformation
  augment: ParsingAugment
  image_size: int
  label_order: str = 'celebamask_hq'
  accumulate_steps: int = 1
  ema_decay: float = 0.0  # 0: no averaged copy.

  batch_fields = ('image', 'label')
  optional_fields = ()
  frozen = None
  columns = ('input', 'true labels', 'predicted labels', 'overlay')
  given = ('input',)
  comparison = ('predicted labels',)

  @property
  def protocol(self) -> dict[str, str]:
    """What the names of the metrics leave open."""
    return {
      'pictures': f'{self.image_size}x{self.image_size}, class of the highest score',
      'miou': 'intersection and union summed over the split; mean over the classes in labels or predictions',
      'accuracy': 'share of all pixels',
      'loss': 'mean cross-entropy of all pixels, main head',
    }

  def init(self, key: jax.Array) -> TrainState:
    """A fresh state: He-normal ResNet (fan out), the rest LeCun-normal (fan in), BatchNorm the identity."""
    variables = self.model.init(key, jnp.zeros((1, 32, 32, 3)))
    params = variables['params']
    ema = params if self.ema_decay else None
    return first_state(params, variables['batch_stats'], self.optimizer.init(params), ema=ema)

  def train_step(self, state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
    """One update on 'image' [B, S, S, 3], uint8 or [0, 1], and 'label' [B, S, S], augmented row by row.

    Hard pixels are chosen from the whole batch, on however many devices; with `accumulate_steps` from each piece.
    """

    def loss_fn(params: PyTree, batch_stats: PyTree, piece: Batch) -> tuple[jax.Array, tuple[PyTree, Metrics]]:
      piece = self.augment({**piece, 'image': to_float(piece['image'])}, row_keys(key, piece))
      logits, changed = self.model.apply(
        {'params': params, 'batch_stats': batch_stats},
        normalise(piece['image']),
        train=True,
        mutable=['batch_stats'],
      )
      loss, terms = self.loss(logits, self._to_network(piece['label']))
      return loss, (changed['batch_stats'], terms)

    return update(
      state,
      batch,
      loss_fn,
      self.optimizer,
      accumulate_steps=self.accumulate_steps,
      ema_decay=self.ema_decay,
      axis_name=self.model.axis_name,
    )

  def _to_network(self, label: jax.Array) -> jax.Array:
    """Labels in the project's order -> in the network's; those that are none (255) stay none."""
    if self.label_order == 'celebamask_hq':
      return label
    table = np.argsort(labels.lookup_table(self.label_order)).astype(label.dtype)
    return jnp.where(label < labels.NUM_CLASSES, jnp.asarray(table)[label], label)

  def _from_network(self, label: jax.Array) -> jax.Array:
    return jnp.asarray(labels.lookup_table(self.label_order))[label]

  def _logits(self, state: TrainState, image: jax.Array) -> jax.Array:
    variables = {'params': state.params, 'batch_stats': state.model_state}
    return self.model.apply(variables, normalise(to_float(image)), auxiliary=False).main

  def predict(self, state: TrainState, image: jax.Array) -> jax.Array:
    """Label maps uint8 [B, H, W] in the project's order of `image` [B, H, W, 3], uint8 or [0, 1]."""
    return self._from_network(jnp.argmax(self._logits(state, image), -1))

  def eval_step(self, state: TrainState, batch: Batch, key: jax.Array) -> Metrics:
    """'loss' [B], and what `summary` makes figures of: 'intersection' and 'union' [B, K], 'counted' [B]."""
    del key
    logits = self._logits(state, batch['image'])
    loss = pixel_cross_entropy(logits, self._to_network(batch['label'])).mean((1, 2))
    predicted = self._from_network(jnp.argmax(logits, -1))
    return {'loss': loss, **segmentation.overlap(batch['label'], predicted, labels.NUM_CLASSES)._asdict()}

  def summary(self, means: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Figures of a split from the means of `eval_step` over it: mIoU and more, then IoU of each class there is."""
    scores = segmentation.scores(means['intersection'], means['union'], float(means['counted']))
    named = zip(labels.CLASSES, scores['iou'], strict=True)
    return {
      'loss': float(means['loss']),
      **{name: scores[name] for name in ('miou', 'mean_f1', 'accuracy')},
      **{f'iou/{name}': float(iou) for name, iou in named if np.isfinite(iou)},
    }

  def compared(self, state: TrainState, batch: Batch) -> Compared:
    """Nothing: label maps are no pictures."""
    return Compared()

  def render(self, state: TrainState, batch: Batch, key: jax.Array) -> Metrics:
    """Columns to look at: the input, both label maps in `labels.PALETTE`'s colours, the prediction over the input."""
    del key
    image = to_float(batch['image'])
    predicted = coloured(self.predict(state, image))
    return {
      'input': image,
      'true labels': coloured(batch['label']),
      'predicted labels': predicted,
      'overlay': _OVERLAY * image + (1 - _OVERLAY) * predicted,
    }


def make_parsing(config: ConfigDict, axis_name: str | None = None, *, training: bool = True) -> ParsingTask:
  """Builds the task that `config` describes; `axis_name` is the `pmap` axis, None under `jit`."""
  model = config.model
  if model.label_order not in labels.FULL_ORDERS:
    raise UserError(f'unknown model.label_order {model.label_order!r}; choose from {", ".join(labels.FULL_ORDERS)}')
  if model.image_size < 32:
    raise UserError(f'model.image_size={model.image_size} is too small for the parser; give at least 32')
  if training and config.batch_size < 2 * config.accumulate_steps:
    pieces = f' in {config.accumulate_steps} pieces' if config.accumulate_steps > 1 else ''
    raise UserError(
      f'batch_size={config.batch_size}{pieces}: a parser learns nothing about its gates from single pictures; '
      f'give at least {2 * config.accumulate_steps}'
    )
  channels = widths(model.width_multiplier)._asdict()
  # A converted checkpoint says its own widths.
  channels |= {name: model[name] for name in channels if model.get(name)}
  return ParsingTask(
    model=BiSeNet(**channels, dtype=compute_dtype(model.dtype), axis_name=axis_name),
    loss=ParsingLoss(**config.loss, axis_name=axis_name),
    optimizer=make_optimizer(config.optimizer, config.total_steps),
    augment=ParsingAugment(**config.augment),
    image_size=model.image_size,
    label_order=model.label_order,
    accumulate_steps=config.accumulate_steps,
    ema_decay=config.ema_decay,
  )
