"""The first stage of latent diffusion (Esser et al. 2021, Rombach et al. 2022), trained: VQGAN against a PatchGAN."""

# B batch | S picture size | h,w latent grid | N codebook entries

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from jaxface import resize, weights
from jaxface.augment import Augment, to_float, to_unit
from jaxface.collectives import mean_over_devices
from jaxface.errors import UserError, check_at_least
from jaxface.losses import l1_loss
from jaxface.metrics import paired
from jaxface.metrics.lpips import LEAST_SIDE, Lpips
from jaxface.models.patchgan import PatchGAN
from jaxface.models.vqgan import PLACEMENTS, VQGAN, Quantised, quantiser_loss
from jaxface.optimizers import make_optimizer
from jaxface.perceptual_loss import vgg_features
from jaxface.state import PyTree, TrainState, first_state, update_ema
from jaxface.tasks.gradients import gradients
from jaxface.tasks.task import Batch, Compared, Metrics, compute_dtype, row_keys

_MOST_ADAPTIVE = 1e4
_SSIM_WINDOW = 11

# (variables, made, true), pictures in [-1, 1] -> scalar.
Perceptual = Callable[[PyTree, jax.Array, jax.Array], jax.Array]
# Logits of pictures in [-1, 1].
Judge = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class LpipsLoss:
  """LPIPS as a term of a loss: the mean over a batch; of the true pictures no gradient is taken."""

  module: Lpips

  def __call__(self, variables: PyTree, made: jax.Array, true: jax.Array) -> jax.Array:
    """Scalar; pictures [B, S, S, 3] in [-1, 1]."""
    return self.module.apply(variables, (made + 1) / 2, (jax.lax.stop_gradient(true) + 1) / 2).mean()


class Painted(NamedTuple):
  """The last layer of a decoder: `paint(kernel, features)` is a picture, linear in the kernel up to a constant."""

  paint: Callable[[PyTree, jax.Array], jax.Array]
  kernel: PyTree
  features: jax.Array


def hinge_loss(real: jax.Array, fake: jax.Array) -> jax.Array:
  """What a discriminator minimises: half the mean of relu(1 - logits of real) and of relu(1 + logits of made)."""
  return 0.5 * (jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean())


def adaptive_weight(of_reconstruction: PyTree, of_adversary: PyTree) -> jax.Array:
  """|a| / (|b| + 1e-4), at most 1e4, of the two terms' gradients: Esser et al. 2021, equation 7."""
  ratio = optax.tree.norm(of_reconstruction) / (optax.tree.norm(of_adversary) + 1e-4)
  return jnp.clip(ratio, 0, _MOST_ADAPTIVE)


@dataclasses.dataclass(frozen=True)
class AutoencoderLoss:
  """The objective of the autoencoder.

    mean |x - made| + perceptual_weight * perceptual + adaptive * adversarial * -mean(logits) + codebook_weight * VQ

  VQ is `models.vqgan.quantiser_loss`. `adaptive` makes the adversarial term's gradient as long, at the last layer's
  kernel, as that of the terms before it. It is taken from the whole batch of all devices; of a batch in pieces, from
  each piece, as the public code does.

  Attributes:
    perceptual: distance by the features of a frozen network; None leaves the term out.
    adversarial: factor beside the adaptive weight; 0 for an autoencoder without discriminator.
    adversarial_start: first step at which the adversarial term counts and the discriminator learns.
    codebook_weight: factor of both terms of the quantiser.
    beta: factor of the one that `placement` says, see `quantiser_loss`.
    axis_name: `pmap` axis.
  """

  perceptual: Perceptual | None = None
  perceptual_weight: float = 1.0
  adversarial: float = 0.75
  adversarial_start: int = 0
  codebook_weight: float = 1.0
  beta: float = 0.25
  placement: str = 'true'
  axis_name: str | None = None

  def __post_init__(self) -> None:
    if self.placement not in PLACEMENTS:
      raise UserError(f'unknown loss.placement {self.placement!r}; choose from {", ".join(PLACEMENTS)}')
    check_at_least(0, self, 'perceptual_weight', 'adversarial', 'adversarial_start', part='loss.')
    check_at_least(0, self, 'codebook_weight', 'beta', part='loss.')

  def switch(self, step: jax.Array) -> jax.Array:
    """1.0 once the discriminator takes part, 0.0 before; `step` counts updates done."""
    return (step >= self.adversarial_start).astype(jnp.float32)

  def __call__(
    self,
    painted: Painted,
    image: jax.Array,
    quantised: Quantised,
    judge: Judge | None,
    switch: jax.Array,
    frozen: PyTree = None,
  ) -> tuple[jax.Array, jax.Array, Metrics]:
    """Loss, the picture that was made, and the terms as they enter the sum, with the 'adaptive' weight.

    To be differentiated by what `painted` and `quantised` are made of, and by nothing else.

    Args:
      painted: how the picture is made.
      image: the true one, [B, S, S, 3] in [-1, 1].
      quantised: what was decoded.
      judge: the discriminator; None leaves the term out.
      switch: factor of the adversarial term, see `switch`.
      frozen: variables of `perceptual`.
    """
    made = painted.paint(painted.kernel, painted.features)
    # Each term's gradient by the picture is taken here, once: the adaptive weight needs both, and what the picture is
    # made of needs their weighted sum. Differentiating the sum would run the discriminator backwards a second time.
    constant = jax.lax.stop_gradient(made)
    reconstruction = lambda picture: self._reconstruction(picture, image, frozen)
    (value, terms), slope = jax.value_and_grad(reconstruction, has_aux=True)(constant)
    if judge is not None:
      adversary, away = jax.value_and_grad(lambda picture: -judge(picture).mean())(constant)
      terms['adaptive'] = adaptive_weight(self._at_kernel(painted, slope), self._at_kernel(painted, away))
      factor = self.adversarial * switch * terms['adaptive']
      terms['adversarial'] = factor * adversary
      value, slope = value + terms['adversarial'], slope + factor * away
    terms['vq'] = self.codebook_weight * quantiser_loss(quantised, beta=self.beta, placement=self.placement)
    backwards = (made * jax.lax.stop_gradient(slope)).sum()
    loss = jax.lax.stop_gradient(value) + terms['vq'] + backwards - jax.lax.stop_gradient(backwards)
    return loss, constant, terms

  def _reconstruction(self, made: jax.Array, image: jax.Array, frozen: PyTree) -> tuple[jax.Array, Metrics]:
    terms = {'l1': l1_loss(made, image)}
    if self.perceptual is not None:
      terms['perceptual'] = self.perceptual_weight * self.perceptual(frozen, made, image)
    return sum(terms.values()), terms

  def _at_kernel(self, painted: Painted, slope: jax.Array) -> PyTree:
    """A gradient by the picture, carried back to the last layer's kernel."""
    kernel, features = jax.lax.stop_gradient((painted.kernel, painted.features))
    _, pull = jax.vjp(lambda kernel: painted.paint(kernel, features), kernel)
    return mean_over_devices(pull(slope)[0], self.axis_name)


@dataclasses.dataclass(frozen=True)
class AutoencoderTask:
  """Training, evaluation and pictures of the first stage.

  A step updates both networks, each against the other as it was: the discriminator learns from the pictures that the
  autoencoder was updated by. The public code makes them anew by the updated autoencoder, which costs a third more.

  Attributes:
    image_size: side S of the pictures.
    discriminator: None where the loss has no adversarial term.
    optimizer: of both networks, each with a state of its own.
    frozen: variables of the perceptual term's network; see `Task`.
  """

  model: VQGAN
  image_size: int
  discriminator: PatchGAN | None
  optimizer: optax.GradientTransformation
  loss: AutoencoderLoss = dataclasses.field(default_factory=AutoencoderLoss)
  augment: Augment = dataclasses.field(default_factory=Augment)
  accumulate_steps: int = 1
  ema_decay: float = 0.0  # Of the autoencoder; 0: no averaged copy.
  axis_name: str | None = None
  frozen: PyTree = dataclasses.field(default=None, compare=False, repr=False, kw_only=True)

  batch_fields = ('image',)
  optional_fields = ()
  columns = ('input', 'reconstruction', 'codes')
  given = ('input',)
  comparison = ('reconstruction',)

  @property
  def protocol(self) -> dict[str, str]:
    """What the names of the metrics leave open."""
    told = paired.told(self._window)
    return {
      'pictures': f'{self.image_size}x{self.image_size}, [0, 1], clipped',
      **{name: told[name] for name in ('l1', 'psnr', 'ssim')},
      'perplexity': f"exp of the entropy of all codes' shares, at most {self.model.codebook_size}",
      'used': 'share of the codebook that occurs at least once',
    }

  def init(self, key: jax.Array) -> TrainState:
    """A fresh state: kernels and biases as PyTorch draws them, but the discriminator's as `PatchGAN` says."""
    generator_key, discriminator_key = jax.random.split(key)
    image = jnp.zeros((1, self.image_size, self.image_size, 3))
    params, batch_stats = {'generator': self.model.init(generator_key, image)['params']}, None
    if self.discriminator is not None:
      variables = self.discriminator.init(discriminator_key, image)
      params['discriminator'], batch_stats = variables['params'], variables['batch_stats']
    opt_state = {name: self.optimizer.init(network) for name, network in params.items()}
    ema = {'generator': params['generator']} if self.ema_decay else None
    return first_state(params, batch_stats, opt_state, ema=ema)

  def train_step(self, state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
    """One update of both networks on uint8 'image' [B, S, S, 3]; see the class."""
    switch = self.loss.switch(state.step)

    def loss_fn(params: PyTree, batch_stats: PyTree, piece: Batch) -> tuple[jax.Array, tuple[PyTree, Metrics]]:
      piece = self.augment({**piece, 'image': to_float(piece['image'])}, row_keys(key, piece))
      image = 2 * piece['image'] - 1
      loss, made, terms = self.generator_loss(params, batch_stats, image, switch, state.frozen)
      terms = {'loss': loss, **terms}
      if self.discriminator is not None:
        hinge, batch_stats = self.discriminator_loss(params['discriminator'], batch_stats, image, made)
        terms['discriminator'] = hinge
        loss += switch * hinge
      return loss, (batch_stats, terms)

    gradient, batch_stats, metrics = gradients(
      loss_fn,
      state.params,
      state.model_state,
      batch,
      accumulate_steps=self.accumulate_steps,
      axis_name=self.axis_name,
    )
    metrics['grad_norm'] = optax.tree.norm(gradient['generator'])
    params, opt_state = {}, {}
    for name, network in state.params.items():
      updates, opt_state[name] = self.optimizer.update(gradient[name], state.opt_state[name], network)
      params[name] = optax.apply_updates(network, updates)
    ema = update_ema(state.ema, {'generator': params['generator']}, self.ema_decay)
    state = state.replace(step=state.step + 1, params=params, model_state=batch_stats, opt_state=opt_state, ema=ema)
    return state, metrics

  def generator_loss(
    self, params: PyTree, batch_stats: PyTree, image: jax.Array, switch: jax.Array, frozen: PyTree
  ) -> tuple[jax.Array, jax.Array, Metrics]:
    """Loss of the autoencoder, what it made, and the terms; `image` [B, S, S, 3] in [-1, 1]."""
    own = params['generator']
    apply = lambda method, *args: self.model.apply({'params': own}, *args, method=method)
    quantised = apply('quantise', apply('encode', image))
    last = own['to_image']

    def paint(kernel: jax.Array, features: jax.Array) -> jax.Array:
      return self.model.apply({'params': {'to_image': {**last, 'kernel': kernel}}}, features, method='paint')

    painted = Painted(paint, last['kernel'], apply('features', quantised.latent))
    judge = None
    if self.discriminator is not None:
      fixed = jax.lax.stop_gradient(params['discriminator'])
      judge = lambda picture: self.judge(fixed, batch_stats, picture)[0]
    return self.loss(painted, image, quantised, judge, switch, frozen)

  def discriminator_loss(
    self, params: PyTree, batch_stats: PyTree, real: jax.Array, made: jax.Array
  ) -> tuple[jax.Array, PyTree]:
    """Hinge loss of the discriminator, in a pass for the real pictures and one for the made, and its statistics."""
    real_logits, batch_stats = self.judge(params, batch_stats, real)
    made_logits, batch_stats = self.judge(params, batch_stats, made)
    return hinge_loss(real_logits, made_logits), batch_stats

  def judge(self, params: PyTree, batch_stats: PyTree, picture: jax.Array) -> tuple[jax.Array, PyTree]:
    """Logits of pictures in training, and the discriminator's moving statistics after them."""
    logits, changed = self.discriminator.apply(
      {'params': params, 'batch_stats': batch_stats}, picture, train=True, mutable=['batch_stats']
    )
    return logits, changed['batch_stats']

  def reconstruct(self, state: TrainState, image: jax.Array) -> tuple[jax.Array, Quantised]:
    """Pictures [B, S, S, 3] in [0, 1] -> reconstructions in [0, 1], clipped, and their latents."""
    made, quantised = self.model.apply({'params': state.params['generator']}, 2 * image - 1)
    return to_unit(made), quantised

  def eval_step(self, state: TrainState, batch: Batch, key: jax.Array) -> Metrics:
    """Measures of the reconstruction per example [B], and 'codes' [B, N], the share of each code in the example."""
    del key
    image = to_float(batch['image'])
    made, quantised = self.reconstruct(state, image)
    measures = paired.measures(self._window)
    count = lambda indices: jnp.bincount(indices, length=self.model.codebook_size)
    codes = quantised.indices.reshape(len(image), -1)
    return {
      **{f'reconstruction/{name}': measures[name](image, made) for name in ('l1', 'psnr', 'ssim')},
      'codes': jax.vmap(count)(codes) / codes.shape[1],
    }

  def summary(self, means: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The averages, and how much of the codebook is in use over all examples."""
    shares = means['codes'] / means['codes'].sum()
    present = shares[shares > 0]
    return {
      **{name: float(value) for name, value in means.items() if name != 'codes'},
      'codebook/perplexity': float(np.exp(-(present * np.log(present)).sum())),
      'codebook/used': present.size / shares.size,
    }

  def compared(self, state: TrainState, batch: Batch) -> Compared:
    """Originals and reconstructions."""
    image = to_float(batch['image'])
    made, _ = self.reconstruct(state, image)
    return Compared(pairs={'reconstruction': (image, made)}, real=image, sets={'reconstruction': made})

  def render(self, state: TrainState, batch: Batch, key: jax.Array) -> Metrics:
    """Columns to look at: the input, its reconstruction, and the codes between, coloured by their place in space."""
    del key
    image = to_float(batch['image'])
    made, quantised = self.reconstruct(state, image)
    codebook = state.params['generator']['quantiser']['codebook']
    return {'input': image, 'reconstruction': made, 'codes': _coloured(quantised.latent, codebook, self.image_size)}

  @property
  def _window(self) -> int:
    return min(_SSIM_WINDOW, self.image_size)


def _coloured(latent: jax.Array, codebook: jax.Array, size: int) -> jax.Array:
  """Entries [B, h, w, d] as pictures [B, size, size, 3]: three coordinates are red, green and blue; of fewer, grey."""
  low, high = (extreme[None, None, None] for extreme in (codebook.min(0), codebook.max(0)))
  colours = (latent - low) / jnp.maximum(high - low, 1e-12)
  channels = 3 if colours.shape[-1] >= 3 else 1
  return resize.nearest(jnp.clip(colours[..., :channels], 0, 1), (size, size))


def make_vqgan(config: ConfigDict) -> VQGAN:
  """The autoencoder that the `model` part of an experiment describes; a run has its parameters as 'generator'."""
  return VQGAN(
    width=config.width,
    multipliers=tuple(config.multipliers),
    num_blocks=config.num_blocks,
    latent_channels=config.latent_channels,
    codebook_size=config.codebook_size,
    codebook_spread=config.codebook_spread or None,
    dtype=compute_dtype(config.dtype),
    remat=config.remat,
  )


def _make_perceptual(name: str, image_size: int, dtype: jnp.dtype) -> tuple[Perceptual | None, PyTree]:
  """The perceptual term that `loss.perceptual` names, and the variables of its network."""
  if name.removeprefix(weights.UNTRAINED) == 'lpips-vgg':
    if image_size < LEAST_SIDE['vgg']:
      raise UserError(f'model.image_size={image_size} is too small for loss.perceptual=lpips-vgg; say random or none')
    network = weights.load(name)
    # The backend's own precision: a loss need not be exact to the last digits.
    return LpipsLoss(network.module.clone(precision=None)), network.variables
  if name not in ('random', 'none'):
    raise UserError(f'unknown loss.perceptual {name!r}; choose from lpips-vgg, random, none')
  return vgg_features(name, dtype)


def make_autoencoder(config: ConfigDict, axis_name: str | None = None, *, training: bool = True) -> AutoencoderTask:
  """Builds the task that `config` describes; `axis_name` is the `pmap` axis, None under `jit`.

  Without `training` nothing is loaded that only the losses need.
  """
  model, loss = config.model, config.loss
  network = make_vqgan(model)
  size = model.image_size
  if size < network.factor or size % network.factor:
    nearest = max(round(size / network.factor), 1) * network.factor
    raise UserError(
      f'model.image_size={size} must be a multiple of {network.factor}, by which {len(network.multipliers)} '
      f'multipliers divide it; the nearest is {nearest}'
    )
  discriminator = None
  if loss.adversarial:
    discriminator = PatchGAN(
      model.discriminator_dim, model.discriminator_layers, dtype=network.dtype, axis_name=axis_name
    )
    if size < discriminator.least_side:
      raise UserError(
        f'model.image_size={size} is too small for model.discriminator_layers={model.discriminator_layers}, which '
        f'needs {discriminator.least_side}; give fewer layers, or loss.adversarial=0'
      )
  perceptual, frozen = _make_perceptual(loss.perceptual, size, network.dtype) if training else (None, None)
  return AutoencoderTask(
    model=network,
    image_size=size,
    discriminator=discriminator,
    optimizer=make_optimizer(config.optimizer, config.total_steps),
    loss=AutoencoderLoss(**{**loss, 'perceptual': perceptual}, axis_name=axis_name),
    augment=Augment(**config.augment),
    accumulate_steps=config.accumulate_steps,
    ema_decay=config.ema_decay,
    axis_name=axis_name,
    frozen=frozen,
  )
