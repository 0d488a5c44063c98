"""BeautyGAN (Li et al. 2018), trained: losses, the three updates of a step, transfer at a level.

Discriminator A tells faces with makeup from made-up targets, discriminator B faces without from cleaned references.
"""

# B batch | H,W sides of what the network sees

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from jaxface.histogram_matching import has_eyes, histogram_loss, regions
from jaxface.losses import l1_loss
from jaxface.models.beautygan import BeautyGenerator, PatchDiscriminator
from jaxface.optimizers import make_optimizer
from jaxface.perceptual_loss import PerceptualLoss, vgg_features
from jaxface.state import PyTree, TrainState, first_state, update_ema
from jaxface.tasks.gradients import LossFn, update_network
from jaxface.tasks.makeup import EYE_MARGIN, Faces, MakeupTask, make_framing, region_loss
from jaxface.tasks.task import Batch, Metrics, apart, compute_dtype, together


@dataclasses.dataclass(frozen=True)
class LossWeights:
  """Factors of the terms, each the sum over both directions (and both eyes, and all four outputs of `identity`).

  A term of weight 0 is not computed, all three of makeup's histograms only together.
  """

  adversarial: float = 1.0
  cycle: float = 5.0
  perceptual: float = 0.025
  identity: float = 2.5
  lips: float = 1.0
  skin: float = 0.1
  eyes: float = 1.0


@dataclasses.dataclass(frozen=True)
class BeautyGanTask(MakeupTask):
  """Training of BeautyGAN: discriminator A, discriminator B, then the generator against the new ones.

  Attributes:
    perceptual: VGG-19's features, which a face keeps; None leaves the term out. Its variables are `frozen`.
    neck: count the neck as skin, as the public code does; PSGAN does not.
    eye_margin: how far from the eye its makeup reaches, as a share of the picture's side.
  """

  generator: BeautyGenerator
  discriminator: PatchDiscriminator
  optimizer: optax.GradientTransformation
  weights: LossWeights = dataclasses.field(default_factory=LossWeights)
  perceptual: PerceptualLoss | None = None
  neck: bool = True
  eye_margin: float = EYE_MARGIN
  accumulate_steps: int = 1
  ema_decay: float = 0.0  # Of the generator; 0: no averaged copy.
  axis_name: str | None = None

  def init(self, key: jax.Array) -> TrainState:
    """A fresh state: Xavier-normal generator, discriminators as PyTorch draws convolutions."""
    generator_key, *discriminator_keys = jax.random.split(key, 3)
    image = jnp.zeros((1, self.framing.crop_size, self.framing.crop_size, 3))
    params = {'generator': self.generator.init(generator_key, image, image)['params']}
    spectral = {}
    for name, k in zip('ab', discriminator_keys, strict=True):
      variables = self.discriminator.init(k, image)
      params[f'discriminator_{name}'], spectral[name] = variables['params'], variables['spectral']
    opt_state = {name: self.optimizer.init(network) for name, network in params.items()}
    ema = {'generator': params['generator']} if self.ema_decay else None
    return first_state(params, spectral, opt_state, ema=ema)

  def train_step(self, state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
    """The three updates; every discriminator's singular vectors move with each of its forward passes."""
    reference, target = self.sides(batch, key)
    rows = {'target': target, 'reference': reference}
    params, opt_state, spectral, metrics = dict(state.params), dict(state.opt_state), dict(state.model_state), {}

    def update(name: str, loss_fn: LossFn, model_state: PyTree) -> PyTree:
      params[name], opt_state[name], model_state, terms = update_network(
        loss_fn,
        params[name],
        opt_state[name],
        model_state,
        rows,
        self.optimizer,
        accumulate_steps=self.accumulate_steps,
        axis_name=self.axis_name,
      )
      metrics.update(terms)  # The generator comes last: 'grad_norm' is its own.
      return model_state

    for name in 'ab' if self.weights.adversarial else '':
      loss_fn = functools.partial(self._discriminator_loss, name, params['generator'])
      spectral[name] = update(f'discriminator_{name}', loss_fn, spectral[name])
    judges = {name: params[f'discriminator_{name}'] for name in 'ab'}
    spectral = update('generator', functools.partial(self._generator_loss, judges, state.frozen), spectral)
    ema = update_ema(state.ema, {'generator': params['generator']}, self.ema_decay)
    state = state.replace(step=state.step + 1, params=params, opt_state=opt_state, model_state=spectral, ema=ema)
    return state, metrics

  def _discriminator_loss(
    self, name: str, generator: PyTree, judge: PyTree, vectors: PyTree, rows: Mapping[str, Faces]
  ) -> tuple[jax.Array, tuple[PyTree, Metrics]]:
    target, reference = rows['target'].image, rows['reference'].image
    made_up, cleaned = jax.lax.stop_gradient(self._generate(generator, target, reference))
    real, fake = {'a': (reference, made_up), 'b': (target, cleaned)}[name]
    real_scores, vectors = self.judge(judge, vectors, real)
    fake_scores, vectors = self.judge(judge, vectors, fake)
    loss = 0.5 * (jnp.square(real_scores - 1).mean() + jnp.square(fake_scores).mean())
    return loss, (vectors, {f'discriminator_{name}': loss})

  def _generator_loss(
    self, judges: PyTree, frozen: PyTree, params: PyTree, spectral: PyTree, rows: Mapping[str, Faces]
  ) -> tuple[jax.Array, tuple[PyTree, Metrics]]:
    loss, spectral, terms = self.generator_loss(params, judges, spectral, frozen, **rows)
    return loss, (spectral, {'loss': loss, **terms})

  def judge(self, params: PyTree, vectors: PyTree, image: jax.Array) -> tuple[jax.Array, PyTree]:
    """Scores of pictures in training, and the singular vectors after them."""
    scores, changed = self.discriminator.apply(
      {'params': params, 'spectral': vectors}, image, train=True, mutable=['spectral']
    )
    return scores, changed['spectral']

  def generator_loss(
    self, params: PyTree, judges: PyTree, spectral: PyTree, frozen: PyTree, *, target: Faces, reference: Faces
  ) -> tuple[jax.Array, PyTree, Metrics]:
    """Loss of the generator, the singular vectors after it, and the terms as they enter the sum."""
    a, b = target.image, reference.image
    terms = {}
    if self.weights.identity:
      # Three pairs in one pass: target and reference, and either with itself.
      outputs = self._generate(params, together(a, a, b), together(b, a, b))
      (made_up, *same_1), (cleaned, *same_2) = (apart(output, 3) for output in outputs)
      pairs = zip((*same_1, *same_2), (a, b, a, b), strict=True)
      terms['identity'] = sum(l1_loss(same, own) for same, own in pairs)
    else:
      made_up, cleaned = self._generate(params, a, b)
    if self.weights.adversarial:
      scores_a, vectors_a = self.judge(judges['a'], spectral['a'], made_up)
      scores_b, vectors_b = self.judge(judges['b'], spectral['b'], cleaned)
      spectral = {'a': vectors_a, 'b': vectors_b}
      terms['adversarial'] = jnp.square(scores_a - 1).mean() + jnp.square(scores_b - 1).mean()
    if self.weights.cycle:
      # The cleaned reference is made up again by the made-up target.
      made_up_again, cleaned_again = self._generate(params, cleaned, made_up)
      terms['cycle'] = l1_loss(cleaned_again, a) + l1_loss(made_up_again, b)
    if self.weights.lips or self.weights.skin or self.weights.eyes:
      terms |= self._histograms(made_up, cleaned, target, reference)
    if self.perceptual is not None and self.weights.perceptual:
      terms['perceptual'] = self.perceptual(frozen, made_up, a) + self.perceptual(frozen, cleaned, b)
    terms = {name: getattr(self.weights, name) * value for name, value in terms.items()}
    if self.paired:
      terms['paired'] = self.paired * region_loss(target.truth, made_up, target.label)
    return sum(terms.values()), spectral, terms

  def _histograms(self, made_up: jax.Array, cleaned: jax.Array, target: Faces, reference: Faces) -> Metrics:
    margin = max(1, round(self.eye_margin * target.label.shape[1]))
    masks_a, masks_b = (regions(faces.label, margin=margin, neck=self.neck) for faces in (target, reference))
    # A closed eye has no box: such a pair teaches nothing about eyes (the public code leaves the whole pair out).
    eyes = (has_eyes(target.label) & has_eyes(reference.label)).astype(jnp.float32)

    def both(region: str) -> jax.Array:
      a, b = masks_a[region], masks_b[region]
      return histogram_loss(made_up, reference.image, a, b) + histogram_loss(cleaned, target.image, b, a)

    return {
      'lips': both('lip').mean(),
      'skin': both('skin').mean(),
      'eyes': (eyes * (both('left_eye') + both('right_eye'))).mean(),
    }

  def code(self, state: TrainState, reference: Faces) -> jax.Array:
    """The reference itself: this system has no code of a style."""
    del state
    return reference.image

  def wear(self, state: TrainState, target: Faces, code: jax.Array, level: jax.Array | None = None) -> jax.Array:
    """The target made up; levels in between, which the system does not know, are mixed from both pictures' pixels."""
    made_up, _ = self._generate(state.params['generator'], target.image, code)
    if level is None:
      return made_up
    level = level[:, None, None, None]
    return (1 - level) * target.image + level * made_up

  def _generate(self, params: PyTree, source: jax.Array, reference: jax.Array) -> tuple[jax.Array, jax.Array]:
    return self.generator.apply({'params': params}, source, reference)


def make_beautygan(config: ConfigDict, axis_name: str | None = None, *, training: bool = True) -> BeautyGanTask:
  """Builds the task that `config` describes; `axis_name` is the `pmap` axis, None under `jit`.

  Without `training` nothing is loaded that only the losses need.
  """
  model, dtype = config.model, compute_dtype(config.model.dtype)
  perceptual, frozen = vgg_features(config.loss.perceptual, dtype) if training else (None, None)
  return BeautyGanTask(
    framing=make_framing(config.augment, model.image_size),
    image_size=model.image_size,
    paired=config.loss.paired if training else 0.0,
    frozen=frozen,
    generator=BeautyGenerator(dim=model.dim, num_blocks=model.num_blocks, dtype=dtype),
    discriminator=PatchDiscriminator(dim=model.discriminator_dim, num_layers=model.discriminator_layers, dtype=dtype),
    optimizer=make_optimizer(config.optimizer, config.total_steps),
    weights=LossWeights(**config.loss.weights),
    perceptual=perceptual,
    neck=config.loss.neck,
    accumulate_steps=config.accumulate_steps,
    ema_decay=config.ema_decay,
    axis_name=axis_name,
  )
