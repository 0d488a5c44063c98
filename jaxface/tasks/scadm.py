"""SCA-DM (Ergasti et al., 2024): a latent diffusion that draws a face after a label map and the styles of its parts."""

# B batch | S picture size | s latent size | K classes | D numbers of a style

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxface import labels
from jaxface.augment import to_signed, to_unit
from jaxface.collectives import next_rows
from jaxface.diffusion import training
from jaxface.diffusion.schedule import make_schedule
from jaxface.errors import UserError
from jaxface.models.scadm import Conditioning, SCAUNet, denoise_with_scores
from jaxface.models.style_encoder import StyleEncoder
from jaxface.optimizers import make_optimizer
from jaxface.state import PyTree, TrainState
from jaxface.tasks.diffusion import MASK_ONLY, NOTHING, DiffusionTask, Objective, make_sampling
from jaxface.tasks.first_stage import FirstStage, load_first_stage
from jaxface.tasks.task import Batch, Metrics, compute_dtype

OWN_STYLE = 'own style'
_OTHER_STYLE = "next row's style"
_FIRST_STAGE = 'first stage'


@dataclasses.dataclass(frozen=True)
class ScaDmTask(DiffusionTask):
  """Training and use of SCA-DM: UNet and style encoder are trained together, the first stage is frozen.

  Attributes:
    style_encoder: pictures and label maps to styles.
    first_stage: pictures to latents and back.
    discard_rate: share of training rows whose style is that of an empty picture, so that a label map alone will do.
    attention_loss: 'bce' or 'l2', see `training.attention_loss`; with `attention_weight` 0 there is none.
    attention_weight: its factor.
    average_style: keep an averaged copy of the style encoder, too; the public code forgets it.
  """

  style_encoder: StyleEncoder = dataclasses.field(kw_only=True)
  first_stage: FirstStage = dataclasses.field(kw_only=True)
  discard_rate: float = 0.5
  attention_loss: str = 'bce'
  attention_weight: float = 0.0
  average_style: bool = True

  columns = ('input', 'label map', _FIRST_STAGE, OWN_STYLE, MASK_ONLY, _OTHER_STYLE)
  comparison = (OWN_STYLE,)

  def __post_init__(self) -> None:
    if self.attention_weight and self.attention_loss not in training.ATTENTION_LOSSES:
      known = ', '.join(training.ATTENTION_LOSSES)
      raise UserError(f'unknown loss.attention {self.attention_loss!r}; choose from {known}')

  @property
  def x_shape(self) -> tuple[int, int, int]:
    """The latent's [s, s, C]."""
    return self.first_stage.latent_shape(self.image_size)

  @property
  def protocol(self) -> dict[str, str]:
    """What the names of the metrics leave open."""
    return {
      **super().protocol,
      OWN_STYLE: "drawn after the label map and the picture's own style: reconstruction",
      _FIRST_STAGE: 'the picture through the autoencoder alone, the best that drawing can reach',
    }

  def init_networks(self, key: jax.Array) -> dict[str, PyTree]:
    """UNet and style encoder."""
    unet_key, style_key = jax.random.split(key)
    image, label = (
      jnp.zeros((1, self.image_size, self.image_size, 3)),
      jnp.zeros((1, *(self.image_size,) * 2), jnp.int32),
    )
    style = self.style_encoder.init(style_key, image, label)
    x, t = jnp.zeros((1, *self.x_shape)), jnp.zeros(1, jnp.int32)
    tokens = jax.eval_shape(self.style_encoder.apply, style, image, label)
    given = Conditioning(jnp.zeros(tokens.shape), label)
    return {'unet': self.unet.init(unet_key, x, t, given)['params'], 'style': style['params']}

  def train_step(self, state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
    """As any diffusion's; unless `average_style`, evaluation takes the style encoder as it was last trained."""
    state, metrics = super().train_step(state, batch, key)
    if state.ema is not None and not self.average_style:
      state = state.replace(ema={**state.ema, 'style': state.params['style']})
    return state, metrics

  def derive(self, frozen: PyTree, records: Batch) -> dict[str, jax.Array]:
    """Latents of a dataset's pictures, 'latent' [N, s, s, C], so that no step encodes them again."""
    return {'latent': self.first_stage.encode(frozen['first_stage'], to_signed(records['image']))}

  def rows(self, state: TrainState, batch: Batch, keys: jax.Array) -> dict[str, jax.Array]:
    """Latents, label maps, and the pictures that styles are taken from, of which some are empty."""
    image = to_signed(batch['image'])
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.discard_rate))(keys)
    return {
      'x0': batch['latent'] if 'latent' in batch else self.encode(state, image),
      'label': batch['label'].astype(jnp.int32),
      'style': jnp.where(kept[:, None, None, None], image, 0),
    }

  def given_rows(self, params: PyTree, rows: Mapping[str, jax.Array]) -> Conditioning:
    """Label maps and styles."""
    tokens = self.style(params, rows['style'], rows['label'])
    if not self.drop_rate:
      return Conditioning(tokens, rows['label'])
    drop = rows['drop'][:, None, None]
    return Conditioning(jnp.where(drop, 0, tokens), jnp.where(drop, NOTHING, rows['label']))

  def terms(self, params: PyTree, rows: Mapping[str, jax.Array], given: Conditioning) -> dict[str, jax.Array]:
    """The denoising loss, and that of the attention's scores where it has a weight."""
    if not self.attention_weight:
      return super().terms(params, rows, given)
    variables = {'params': params['unet']}
    output, scores = denoise_with_scores(self.unet, variables, self.noisy(rows), rows['t'], given)
    attention = training.attention_loss(scores, rows['label'], self.attention_loss)
    return {
      'denoising': self.objective.row_losses(self.schedule, output, rows).mean(),
      'attention': self.attention_weight * attention,
    }

  def style(self, params: PyTree, image: jax.Array, label: jax.Array) -> jax.Array:
    """Style of every class [B, K, D], of pictures [B, S, S, 3] in [-1, 1]; of an empty (zero) picture: none given."""
    return self.style_encoder.apply({'params': params['style']}, image, label)

  def modes(self, state: TrainState, image: jax.Array, label: jax.Array) -> dict[str, Conditioning]:
    """With the picture's own style, and with none."""
    return {
      OWN_STYLE: Conditioning(self.style(state.params, image, label), label),
      MASK_ONLY: Conditioning(self.style(state.params, jnp.zeros_like(image), label), label),
    }

  def shown(self, state: TrainState, image: jax.Array, label: jax.Array) -> dict[str, Conditioning]:
    """The modes, and the styles of somebody else."""
    modes = self.modes(state, image, label)
    return {**modes, _OTHER_STYLE: Conditioning(next_rows(modes[OWN_STYLE].tokens, self.axis_name), label)}

  def nothing(self) -> Conditioning:
    """No class anywhere, and no style."""
    shape = (1, labels.NUM_CLASSES, self.style_encoder.num_tokens_channels)
    return Conditioning(jnp.zeros(shape), jnp.full((1, self.image_size, self.image_size), NOTHING, jnp.int32))

  def encode(self, state: TrainState, image: jax.Array) -> jax.Array:
    """Latents, not quantised."""
    return self.first_stage.encode(state.frozen['first_stage'], image)

  def decode(self, state: TrainState, x0: jax.Array) -> jax.Array:
    """Of latents, quantised first."""
    return self.first_stage.decode(state.frozen['first_stage'], x0)

  def coded(self, state: TrainState, image: jax.Array) -> dict[str, jax.Array]:
    """The picture through the first stage."""
    return {_FIRST_STAGE: to_unit(self.decode(state, self.encode(state, image)))}


def make_scadm(config: ConfigDict, axis_name: str | None = None, *, training: bool = True) -> ScaDmTask:
  """The task that an experiment describes; see experiments/scadm.py."""
  del training  # Drawing needs the first stage, too.
  model, dtype = config.model, compute_dtype(config.model.dtype)
  schedule = make_schedule(config.schedule.name, start=config.schedule.start, end=config.schedule.end)
  first_stage, params = load_first_stage(config.first_stage, model.image_size, dtype)
  style_encoder = StyleEncoder(
    width=model.style_width, token_dim=model.style_dim, num_downsamples=model.style_downsamples, dtype=dtype
  )
  return ScaDmTask(
    unet=SCAUNet(
      model_channels=model.channels,
      multipliers=model.multipliers,
      num_blocks=model.num_blocks,
      attention_factors=model.attention_factors,
      head_channels=model.head_channels,
      context_dim=None,
      out_channels=first_stage.model.latent_channels,
      spade_hidden=model.spade_hidden,
      remat=model.remat,
      dtype=dtype,
    ),
    schedule=schedule,
    objective=Objective(config.loss.prediction, config.loss.weighting, config.loss.gamma, config.loss.distance),
    sampling=make_sampling(config.sampling, schedule),
    optimizer=make_optimizer(config.optimizer, config.total_steps),
    image_size=model.image_size,
    drop_rate=config.loss.drop_rate,
    accumulate_steps=config.accumulate_steps,
    ema_decay=config.ema_decay,
    axis_name=axis_name,
    style_encoder=style_encoder,
    first_stage=first_stage,
    discard_rate=config.loss.discard_rate,
    attention_loss=config.loss.attention,
    attention_weight=config.loss.attention_weight,
    average_style=config.average_style,
    frozen={'first_stage': params},
  )
