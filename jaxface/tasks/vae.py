"""The face-mask VAE (Toledo & Antonelo, ENIAC 2021): losses, train step, evaluation under three protocols, pictures."""

# B batch | S picture size | D latent dimensions

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from jaxface import losses
from jaxface.augment import Augment, to_float
from jaxface.errors import UserError
from jaxface.metrics import paired, segmentation
from jaxface.models.vae import FaceMaskVAE, Prediction, stage_widths
from jaxface.optimizers import make_optimizer
from jaxface.state import PyTree, TrainState, first_state
from jaxface.tasks.gradients import update
from jaxface.tasks.task import Batch, Compared, Metrics, compute_dtype, row_keys

# Weights of the reconstruction terms, by the loss's name in the paper.
RECONSTRUCTION_LOSSES = {
  'l1': {'l1': 4.0},
  'l2': {'l2': 100.0},
  'ssim': {'ssim': 1.0},
  'ssim_l1': {'ssim': 1.0, 'l1': 4.0},
  'ssim_l2': {'ssim': 1.0, 'l2': 100.0},
}

# How a reconstruction is compared, see `VaeTask.eval_step`.
PROTOCOLS = ('whole', 'true_mask', 'predicted_mask')


@dataclasses.dataclass(frozen=True)
class VaeLoss:
  """The objective: reconstruction terms, KL, and with masks the mask decoder's cross-entropy and dice.

  Attributes:
    name: a key of RECONSTRUCTION_LOSSES.
    masks: composite with the true mask before comparing, so that only face pixels count, and train the mask decoder.
    kl_weight: factor of the KL divergence's mean over batch and latent dimensions.
    filter_size: side of the SSIM's window.
    fused_ssim: see `jaxface.ssim.ssim`.
    axis_name: `pmap` axis, for the dice term's sums over the whole batch.
  """

  name: str
  masks: bool
  kl_weight: float = 1e-3
  filter_size: int = 9
  fused_ssim: bool = False
  axis_name: str | None = None

  def __post_init__(self) -> None:
    if self.name not in RECONSTRUCTION_LOSSES:
      raise UserError(f'unknown loss.name {self.name!r}; choose from {", ".join(RECONSTRUCTION_LOSSES)}')

  def __call__(self, predicted: Prediction, image: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, Metrics]:
    """Loss of a batch and its terms as they enter the sum; `image` [B, S, S, 3], `mask` [B, S, S, 1] in [0, 1]."""
    measures = {
      'l1': losses.l1_loss,
      'l2': losses.l2_loss,
      'ssim': lambda a, b: losses.ssim_loss(a, b, filter_size=self.filter_size, fused=self.fused_ssim),
    }
    terms = {
      name: weight * measures[name](image, predicted.image) for name, weight in RECONSTRUCTION_LOSSES[self.name].items()
    }
    terms['kl'] = self.kl_weight * losses.kl_divergence(predicted.mean, predicted.log_sigma)
    if self.masks:
      terms['bce'] = losses.binary_cross_entropy_from_logits(predicted.mask_logits, mask)
      terms['dice'] = losses.dice_loss(predicted.mask, mask, axis_name=self.axis_name)
    loss = sum(terms.values())
    return loss, {'loss': loss, **terms}


@dataclasses.dataclass(frozen=True)
class VaeTask:
  """Training, evaluation and pictures of the face-mask VAE."""

  model: FaceMaskVAE
  loss: VaeLoss
  optimizer: optax.GradientTransformation
  augment: Augment = dataclasses.field(default_factory=Augment)
  accumulate_steps: int = 1
  ema_decay: float = 0.0  # 0: no averaged copy.

  frozen = None
  columns = ('input', 'decoded', 'predicted mask', 'by predicted mask', 'true mask', 'by true mask', 'sample')
  given = ('input',)
  # Columns of `render` that a comparison of several runs shows, the first that there is: the paper's figures set
  # every variant's faces on the true background.
  comparison = ('by true mask', 'decoded')

  @property
  def batch_fields(self) -> tuple[str, ...]:
    """Training without masks needs pictures only."""
    return ('image', 'mask') if self.loss.masks else ('image',)

  @property
  def optional_fields(self) -> tuple[str, ...]:
    """Where there are masks, they serve to evaluate any variant."""
    return () if self.loss.masks else ('mask',)

  @property
  def protocol(self) -> dict[str, str]:
    """What the names of the metrics leave open."""
    size, window = self.model.image_size, self.loss.filter_size
    texts = paired.told(window)
    for name in texts.keys() - picture_metrics(size, window).keys():
      texts[name] = f'left out: needs {paired.least_side(name, window)} pixels at window {window}'
    return {'pictures': f'{size}x{size}, [0, 1], z = posterior mean', **texts}

  def init(self, key: jax.Array) -> TrainState:
    """A fresh state: Glorot-uniform kernels, zero biases."""
    size = self.model.image_size
    variables = self.model.init(key, jnp.zeros((1, size, size, 3)))
    params = variables['params']
    ema = params if self.ema_decay else None
    return first_state(params, variables['batch_stats'], self.optimizer.init(params), ema=ema)

  def train_step(self, state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
    """One update on uint8 'image' [B, S, S, 3] and 'mask' [B, S, S, 1]; noise is drawn row by row."""
    augment_key, noise_key = jax.random.split(key)

    def loss_fn(params: PyTree, batch_stats: PyTree, piece: Batch) -> tuple[jax.Array, tuple[PyTree, Metrics]]:
      piece = self.augment({**piece, **_as_floats(piece)}, row_keys(augment_key, piece))
      mask = piece['mask'] if self.loss.masks else None
      predicted, changed = self.model.apply(
        {'params': params, 'batch_stats': batch_stats},
        piece['image'],
        mask=mask,
        noise=self.draw_noise(noise_key, piece),
        train=True,
        mutable=['batch_stats'],
      )
      loss, terms = self.loss(predicted, piece['image'], mask)
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

  def draw_noise(self, key: jax.Array, batch: Batch) -> jax.Array:
    """Standard normal noise [B, D], a row's own whatever batch or device it is in."""
    return jax.vmap(lambda k: jax.random.normal(k, (self.model.latent_dim,), jnp.float32))(row_keys(key, batch))

  def predict(self, state: TrainState, image: jax.Array) -> Prediction:
    """Reconstructs `image` [B, S, S, 3] in [0, 1] with z at the posterior's mean and the predicted mask."""
    return self.model.apply({'params': state.params, 'batch_stats': state.model_state}, image)

  def decode(self, state: TrainState, z: jax.Array) -> jax.Array:
    """Pictures [B, S, S, 3] in [0, 1] of latents `z` [B, D]."""
    decoded, _ = self.model.apply({'params': state.params, 'batch_stats': state.model_state}, z, method='decode')
    return decoded

  def eval_step(self, state: TrainState, batch: Batch, key: jax.Array) -> Metrics:
    """Metrics per example [B] under each protocol, 'protocol/metric', those of the mask, and the training loss.

    Protocols: 'whole', the decoded picture as it is; 'true_mask', composited on the true background by the true mask
    (only where the data has masks); 'predicted_mask', by the predicted one (only where there is a mask decoder).
    """
    del key  # z is the posterior's mean.
    floats = _as_floats(batch)
    image, mask = floats['image'], floats.get('mask')
    predicted = self.predict(state, image)
    metrics = {'loss': self._loss_per_example(predicted, image, mask)}
    for protocol, picture in _protocols(predicted, image, mask).items():
      for name, measure in picture_metrics(self.model.image_size, self.loss.filter_size).items():
        metrics[f'{protocol}/{name}'] = measure(image, picture)
    if self.loss.masks:
      metrics['mask/iou'] = segmentation.mask_iou(predicted.mask, mask)
      metrics['mask/dice'] = segmentation.mask_dice(predicted.mask, mask)
    return metrics

  def compared(self, state: TrainState, batch: Batch) -> Compared:
    """Originals and reconstructions under each protocol of `eval_step`."""
    floats = _as_floats(batch)
    image = floats['image']
    pictures = _protocols(self.predict(state, image), image, floats.get('mask'))
    return Compared(pairs={name: (image, picture) for name, picture in pictures.items()}, real=image, sets=pictures)

  def summary(self, means: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The averages themselves: the loss, then protocol by protocol, then the mask."""
    measures = picture_metrics(self.model.image_size, self.loss.filter_size)
    names = ['loss', *(f'{p}/{m}' for p in PROTOCOLS for m in measures), 'mask/iou', 'mask/dice']
    return {name: float(means[name]) for name in names if name in means}

  def _loss_per_example(self, predicted: Prediction, image: jax.Array, mask: jax.Array | None) -> jax.Array:
    # The dice term, which in training is one for the whole batch, is here one for each picture.
    loss = dataclasses.replace(self.loss, axis_name=None)
    if not loss.masks:
      mask = None
    else:
      predicted = predicted._replace(image=_composite(predicted.decoded, image, mask))

    def one(example: tuple[Prediction, jax.Array, jax.Array | None]) -> jax.Array:
      return loss(*jax.tree.map(lambda leaf: leaf[None], example))[0]

    return jax.vmap(one)((predicted, image, mask))

  def render(self, state: TrainState, batch: Batch, key: jax.Array) -> Metrics:
    """Columns to look at: the input, what is decoded, the masks, the composites, and faces drawn from the prior."""
    floats = _as_floats(batch)
    image, mask = floats['image'], floats.get('mask')
    predicted = self.predict(state, image)
    drawn = self.decode(state, self.draw_noise(key, batch))
    columns = {'input': image, 'decoded': predicted.decoded}
    if predicted.mask is not None:
      columns |= {'predicted mask': predicted.mask, 'by predicted mask': predicted.image}
    if mask is not None:
      columns |= {'true mask': mask, 'by true mask': _composite(predicted.decoded, image, mask)}
    return columns | {'sample': drawn}


def picture_metrics(image_size: int, filter_size: int) -> dict[str, paired.Measure]:
  """The paper's picture metrics that need no network, {name: (reference, picture) -> [B]}; pictures in [0, 1].

  SSIM and MS-SSIM use the loss's window: with one of 11, MS-SSIM is not defined at 144 pixels. A measure whose scales
  do not fit the picture is left out (MS-SSIM under 129 pixels at window 9, VIF under 41).
  """
  return {
    name: measure
    for name, measure in paired.measures(filter_size).items()
    if image_size >= paired.least_side(name, filter_size)
  }


def _as_floats(batch: Batch) -> dict[str, jax.Array]:
  return {name: to_float(batch[name]) for name in ('image', 'mask') if name in batch}


def _protocols(predicted: Prediction, image: jax.Array, mask: jax.Array | None) -> dict[str, jax.Array]:
  pictures = {'whole': predicted.decoded}
  if mask is not None:
    pictures['true_mask'] = _composite(predicted.decoded, image, mask)
  if predicted.mask is not None:
    pictures['predicted_mask'] = predicted.image
  return pictures


def _composite(decoded: jax.Array, image: jax.Array, mask: jax.Array) -> jax.Array:
  return decoded * mask + image * (1 - mask)


def make_vae(config: ConfigDict, axis_name: str | None = None, *, training: bool = True) -> VaeTask:
  """Builds the task that `config` describes; `axis_name` is the `pmap` axis, None under `jit`."""
  del training  # Its losses need no network but its own.
  model = dict(config.model)
  masks = model.pop('masks')
  widths = stage_widths(model['image_size'], model.pop('width_multiplier'))._asdict()
  # A converted checkpoint says its own widths.
  given = {name: model.pop(name) for name in widths if name in model}
  widths |= {name: value for name, value in given.items() if value}
  network = FaceMaskVAE(
    **{**widths, 'mask_widths': widths['mask_widths'] if masks else ()},
    **{**model, 'dtype': compute_dtype(model['dtype'])},
    axis_name=axis_name,
  )
  return VaeTask(
    model=network,
    loss=VaeLoss(**config.loss, masks=masks, axis_name=axis_name),
    optimizer=make_optimizer(config.optimizer, config.total_steps),
    augment=Augment(**config.augment),
    accumulate_steps=config.accumulate_steps,
    ema_decay=config.ema_decay,
  )
