"""IPM-Net (Huang et al., IJCAI 2020), trained: losses, the two updates of a step, transfer at a level.

Domain A is faces with makeup, domain B faces without. One generator serves both; each has its discriminator.
"""

# B batch | H,W sides of what the network sees | D style dimensions

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from jaxface import gan
from jaxface.errors import UserError
from jaxface.losses import l1_loss
from jaxface.models.ipmnet import IPMNet, MultiScaleDiscriminator
from jaxface.optimizers import make_optimizer
from jaxface.perceptual_loss import PerceptualLoss, face_features
from jaxface.state import PyTree, TrainState, first_state, update_ema
from jaxface.tasks.gradients import update_network
from jaxface.tasks.makeup import COLOURS, Faces, MakeupTask, colours_loss, make_framing, region_loss
from jaxface.tasks.task import Batch, Metrics, apart, compute_dtype, row_keys, together
from jaxface.texture import RECIPES, TextureRecipe, content_input, keep_mask, texture


@dataclasses.dataclass(frozen=True)
class LossWeights:
  """Factors of the terms, each the sum over both domains; the defaults are those of the public code.

  The paper gives no weights and has no `cycle`. A term of weight 0 is not computed.
  """

  adversarial: float = 1.0
  reconstruction: float = 20.0
  style: float = 1.0
  content: float = 1.0
  cycle: float = 10.0
  perceptual: float = 5.0
  background: float = 1.0
  foreground: float = 20.0

  def any(self) -> bool:
    """Whether there is anything to learn from faces whose true result is not known."""
    return any(vars(self).values())


class Draws(NamedTuple):
  """What an update draws: a style for each domain [B, D] and the weights of the textures, [B] for each encoding."""

  style_a: jax.Array
  style_b: jax.Array
  textures: tuple[jax.Array, jax.Array, jax.Array, jax.Array]


# What an update learns from, row by row: both sides 'a' and 'b', and the 'draws'.
_Rows = Mapping[str, Faces | Draws]


@dataclasses.dataclass(frozen=True)
class IpmNetTask(MakeupTask):
  """Training of IPM-Net.

  A step updates the discriminators, then the generator against the new ones, each with draws of its own. Faces cross
  over to the other domain in styles drawn from N(0, 1). With `paired` targets wear their references' styles besides, of
  which the true result is known, and their own. The public code lists every generator tensor twice, so that its
  optimizer makes two updates of one gradient; this is one update.

  Attributes:
    textures: recipe for target (no makeup) and for reference pictures.
    texture_range: in training a texture's weight is drawn from U(these), in use it is their mean.
    perceptual: features whose change identity is kept by; None leaves the term out. Its variables are `frozen`.
    gan_kind: see `jaxface.gan`.
    penalty: factor of the discriminators' gradient penalty.
    change: beside `paired`, factor of `region_loss` of what differs between a target in its reference's style and in
      its own to what truly does; 0 leaves it out. Compared directly, errors that both pictures share would drown it.
    colours: beside `paired`, factor of `colours_loss`; 0 leaves it out.
  """

  generator: IPMNet
  discriminator: MultiScaleDiscriminator
  optimizer: optax.GradientTransformation
  judges_optimizer: optax.GradientTransformation | None = None  # None: the generator's.
  weights: LossWeights = dataclasses.field(default_factory=LossWeights)
  textures: tuple[TextureRecipe, TextureRecipe] = (RECIPES['non_makeup'], RECIPES['makeup'])
  texture_range: tuple[float, float] = (0.8, 1.2)
  perceptual: PerceptualLoss | None = None
  gan_kind: str = 'lsgan'
  penalty: float = 0.01
  change: float = 0.0
  colours: float = 0.0
  accumulate_steps: int = 1
  ema_decay: float = 0.0  # Of the generator; 0: no averaged copy.
  axis_name: str | None = None

  def __post_init__(self) -> None:
    gan.measure_of(self.gan_kind)
    low, high = self.texture_range
    if not 0 <= low <= high:
      raise UserError(f'texture.low={low} and texture.high={high}; give 0 or more, and no less than low')
    if (self.change or self.colours) and not self.paired:
      raise UserError('loss.change and loss.colours count beside loss.paired alone; give that a factor, or both 0')
    if self.colours and self.generator.style_dim < COLOURS:
      raise UserError(f'style_dim={self.generator.style_dim} has no room for {COLOURS} colours; or take loss.colours=0')

  @property
  def optimizers(self) -> dict[str, optax.GradientTransformation]:
    """By network, as the state has them."""
    return {'generator': self.optimizer, 'discriminators': self.judges_optimizer or self.optimizer}

  def init(self, key: jax.Array) -> TrainState:
    """A fresh state: He-normal kernels (fan in), zero biases."""
    generator_key, *discriminator_keys = jax.random.split(key, 3)
    image = jnp.zeros((1, self.framing.crop_size, self.framing.crop_size, 3))
    generator = self.generator.init(generator_key, image, image)['params']
    judges = [self.discriminator.init(k, image)['params'] for k in discriminator_keys]
    params = {'generator': generator, 'discriminators': dict(zip('ab', judges, strict=True))}
    opt_state = {name: self.optimizers[name].init(network) for name, network in params.items()}
    return first_state(params, None, opt_state, ema={'generator': generator} if self.ema_decay else None)

  @property
  def batch_fields(self) -> tuple[str, ...]:
    """See `Task`."""
    return (*super().batch_fields, 'blue', 'reference_blue')

  def planes(self, blue: jax.Array, label: jax.Array, *, made_up: bool) -> dict[str, jax.Array]:
    """The texture of the whole picture; the networks' square is cut from it as from the picture."""
    return {'texture': texture(blue[..., None] * 255, label, self.textures[made_up])}

  def train_step(self, state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
    """Both updates, on targets and references that have nothing to do with each other; see the class."""
    sides_key, discriminators_key, generator_key = jax.random.split(key, 3)
    a, b = self.sides(batch, sides_key)
    params, opt_state, metrics = dict(state.params), dict(state.opt_state), {}

    def discriminators_loss(judges: PyTree, _: None, rows: _Rows) -> tuple[jax.Array, tuple[None, Metrics]]:
      loss = self.discriminators_loss(judges, params['generator'], **rows)
      return loss, (None, {'discriminator': loss})

    def generator_loss(generator: PyTree, _: None, rows: _Rows) -> tuple[jax.Array, tuple[None, Metrics]]:
      loss, terms = self.generator_loss(generator, params['discriminators'], state.frozen, **rows)
      return loss, (None, {'loss': loss, **terms})

    updates = [('generator', generator_loss, generator_key)]
    if self.weights.adversarial:
      updates.insert(0, ('discriminators', discriminators_loss, discriminators_key))
    for name, loss_fn, draw_key in updates:
      rows = {'a': a, 'b': b, 'draws': self.draw(row_keys(draw_key, batch))}
      params[name], opt_state[name], _, terms = update_network(
        loss_fn,
        params[name],
        opt_state[name],
        None,
        rows,
        self.optimizers[name],
        accumulate_steps=self.accumulate_steps,
        axis_name=self.axis_name,
      )
      metrics |= terms  # The generator comes last: 'grad_norm' is its own.
    ema = update_ema(state.ema, {'generator': params['generator']}, self.ema_decay)
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state, ema=ema), metrics

  def draw(self, keys: jax.Array) -> Draws:
    """What one update draws, every row by its own key [B]."""

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
      a, b, weights = jax.random.split(key, 3)
      low, high = self.texture_range
      normal = lambda k: jax.random.normal(k, (self.generator.style_dim,), jnp.float32)
      return normal(a), normal(b), jax.random.uniform(weights, (4,), minval=low, maxval=high)

    style_a, style_b, weights = jax.vmap(one)(keys)
    return Draws(style_a, style_b, tuple(weights.T))

  def discriminators_loss(self, judges: PyTree, generator: PyTree, *, a: Faces, b: Faces, draws: Draws) -> jax.Array:
    """Loss of both discriminators on what the generator makes of noise styles."""
    content = together(self._input(a, draws.textures[0]), self._input(b, draws.textures[1]))
    fake_b, fake_a = apart(jax.lax.stop_gradient(self._generate(generator, content, self._crossing(draws))), 2)
    pairs = {'a': (fake_a, a.image), 'b': (fake_b, b.image)}
    return sum(
      gan.discriminator_loss(self.gan_kind, self._judge(judges[name]), fake, real, penalty=self.penalty)
      for name, (fake, real) in pairs.items()
    )

  def generator_loss(
    self, params: PyTree, judges: PyTree, frozen: PyTree, *, a: Faces, b: Faces, draws: Draws
  ) -> tuple[jax.Array, Metrics]:
    """Loss of the generator and its terms as they enter the sum."""
    terms = {}
    if self.weights.any():
      terms = self._unpaired_terms(params, judges, frozen, a, b, draws)
    if self.paired:
      terms |= self._paired_terms(params, a, b, draws)
    return sum(terms.values()), terms

  def _paired_terms(self, params: PyTree, a: Faces, b: Faces, draws: Draws) -> Metrics:
    """Targets in the makeup of their references and in their own against the true results; colours of all styles."""
    apply = lambda method, *args: self.generator.apply({'params': params}, *args, method=method)
    twice = lambda x: together(x, x)
    faces = Faces(together(a.image, b.image), together(a.label, b.label))
    styles = apply('encode_style', faces.image)
    inputs = self._input(b, draws.textures[1])
    made = apply('decode', twice(apply('encode_content', inputs)), styles, twice(inputs))
    terms = {'paired': self.paired * region_loss(together(b.truth, b.image), made, twice(b.label))}
    if self.change:
      worn, own = apart(made, 2)
      terms['change'] = self.change * region_loss(b.truth - b.image, worn - own, b.label)
    if self.colours:
      terms['colours'] = self.colours * colours_loss(styles, faces)
    return terms

  def _unpaired_terms(
    self, params: PyTree, judges: PyTree, frozen: PyTree, a: Faces, b: Faces, draws: Draws
  ) -> Metrics:
    """The terms of `LossWeights`, times these."""
    apply = lambda method, *args: self.generator.apply({'params': params}, *args, method=method)
    # Both domains go through the networks together: half as many, twice as large programs.
    inputs = together(self._input(a, draws.textures[0]), self._input(b, draws.textures[1]))
    content = apply('encode_content', inputs)
    own = apply('encode_style', together(a.image, b.image))
    keep = keep_mask(together(a.label, b.label))
    images = together(a.image, b.image)

    terms = {}
    crossing = self._crossing(draws)
    decoded = apply('decode', together(content, content), together(own, crossing), together(inputs, inputs))
    rebuilt, crossed = apart(decoded, 2)
    a_as_b, b_as_a = apart(crossed, 2)

    # Means over both domains together are half the sum of the two.
    both = lambda x, y: 2 * l1_loss(x, y)
    terms['reconstruction'] = both(rebuilt, images)
    terms['foreground'] = both(rebuilt * (1 - keep), images * (1 - keep))
    if self.weights.adversarial:
      terms['adversarial'] = gan.generator_loss(self.gan_kind, self._judge(judges['a']), b_as_a)
      terms['adversarial'] += gan.generator_loss(self.gan_kind, self._judge(judges['b']), a_as_b)
    if self.weights.style:
      terms['style'] = 2 * jnp.abs(apply('encode_style', crossed) - crossing).mean()
    if self.weights.content or self.weights.cycle:
      again = together(
        self._input(a._replace(image=a_as_b), draws.textures[2]),
        self._input(b._replace(image=b_as_a), draws.textures[3]),
      )
      content_again = apply('encode_content', again)
      terms['content'] = both(content_again, content)
    if self.weights.cycle:
      terms['cycle'] = both(apply('decode', content_again, own, again), images)
    if self.weights.background:
      terms['background'] = both(crossed * keep, images * keep)
    if self.perceptual is not None and self.weights.perceptual:
      terms['perceptual'] = 2 * self.perceptual(frozen, crossed, images)
    return {name: getattr(self.weights, name) * value for name, value in terms.items()}

  def code(self, state: TrainState, reference: Faces) -> jax.Array:
    """Style codes [B, D]."""
    return self.generator.apply({'params': state.params['generator']}, reference.image, method='encode_style')

  def wear(self, state: TrainState, target: Faces, code: jax.Array, level: jax.Array | None = None) -> jax.Array:
    """Decodes the target with a style between its own and `code` (the paper's section 4.5)."""
    if level is not None:
      code = (1 - level)[:, None] * self.code(state, target) + level[:, None] * code
    weight = jnp.full(len(code), sum(self.texture_range) / 2)
    return self._generate(state.params['generator'], self._input(target, weight), code)

  def _input(self, faces: Faces, weight: jax.Array) -> jax.Array:
    return content_input(faces.image, keep_mask(faces.label), faces.texture, weight)

  def _crossing(self, draws: Draws) -> jax.Array:
    """Styles in which A's and B's faces, `together`, look like the other domain's."""
    return together(draws.style_b, draws.style_a)

  def _generate(self, params: PyTree, inputs: jax.Array, style: jax.Array) -> jax.Array:
    return self.generator.apply({'params': params}, inputs, inputs, style)

  def _judge(self, params: PyTree) -> Callable[[jax.Array], tuple[jax.Array, ...]]:
    return lambda image: self.discriminator.apply({'params': params}, image)


def make_recipes(name: str, image_size: int) -> tuple[TextureRecipe, TextureRecipe]:
  """The recipes of the textures of targets and of references, 'stored' or 'published', for pictures of one size."""
  recipes = {'stored': ('non_makeup', 'makeup'), 'published': ('published', 'published')}
  if name not in recipes:
    raise UserError(f'unknown texture.recipe {name!r}; choose from {", ".join(recipes)}')
  return tuple(RECIPES[domain].scaled(image_size) for domain in recipes[name])


def make_ipmnet(config: ConfigDict, axis_name: str | None = None, *, training: bool = True) -> IpmNetTask:
  """Builds the task that `config` describes; `axis_name` is the `pmap` axis, None under `jit`.

  Without `training` nothing is loaded that only the losses need.
  """
  model, dtype = config.model, compute_dtype(config.model.dtype)
  framing = make_framing(config.augment, model.image_size)
  perceptual, frozen = face_features(config.loss.perceptual, framing.crop_size) if training else (None, None)
  return IpmNetTask(
    framing=framing,
    image_size=model.image_size,
    paired=config.loss.paired if training else 0.0,
    frozen=frozen,
    generator=IPMNet(
      dim=model.dim,
      mlp_dim=model.mlp_dim,
      style_dim=model.style_dim,
      num_downsamples=model.num_downsamples,
      num_blocks=model.num_blocks,
      passes_through=model.passes_through,
      dtype=dtype,
      remat=model.get('remat', False),
    ),
    discriminator=MultiScaleDiscriminator(
      dim=model.discriminator_dim,
      num_layers=model.discriminator_layers,
      num_scales=model.discriminator_scales,
      dtype=dtype,
    ),
    optimizer=make_optimizer(config.optimizer, config.total_steps),
    # Rates are of the generator's parts.
    judges_optimizer=make_optimizer(ConfigDict({**config.optimizer, 'rates': None}), config.total_steps),
    weights=LossWeights(**config.loss.weights),
    textures=make_recipes(config.texture.recipe, model.image_size),
    texture_range=(config.texture.low, config.texture.high),
    perceptual=perceptual,
    gan_kind=config.loss.gan,
    penalty=config.loss.penalty,
    change=config.loss.change if training else 0.0,
    colours=config.loss.colours if training else 0.0,
    accumulate_steps=config.accumulate_steps,
    ema_decay=config.ema_decay,
    axis_name=axis_name,
  )
