"""Attention of pictures' positions to each other, and to one token a class under a label map (SCA-DM).

Where every position has one class, masked attention to the classes' tokens needs neither queries nor keys: all but one
score are masked, so the softmax is exactly one-hot, and the result is that class's value behind the last linear layer.
`MaskedAttention.lookup` is this table; `MaskedAttention.keys` is what any other mask takes.
"""

# B batch, or 1 that stands for every picture | P positions, row by row | K classes | D token channels | C channels
# N heads | E channels of a head, C = N E

import dataclasses
import functools

import flax
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.experimental.pallas.ops.tpu.flash_attention import BlockSizes, flash_attention

from jaxface.layers import Dtype
from jaxface.meshes import TPU_LANES, cut_evenly, on_own_rows
from jaxface.models.unet_layers import Linear

# What a TPU's kernel takes of queries, keys and values at once; and from so many positions on scores no longer stay on
# the chip by themselves.
_BLOCK = 512
_MANY_POSITIONS = 1024


def split_heads(x_BPC: jax.Array, heads: int) -> jax.Array:
  """[B, P, C] -> [B, P, heads, C / heads]; the channels of a head are neighbours."""
  return x_BPC.reshape(*x_BPC.shape[:2], heads, -1)


def merge_heads(x_BPNE: jax.Array) -> jax.Array:
  """The inverse of `split_heads`."""
  return x_BPNE.reshape(*x_BPNE.shape[:2], -1)


def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
  """softmax(query key^T / sqrt(E)) value, [B, P, N, E] each; softmax in float32, the result in the inputs' dtype.

  Fused kernels do it where they can, and the N P^2 scores never lie in memory: on NVIDIA's GPUs cuDNN's, of 16 bits,
  E a multiple of 8 up to 128, on Hopper 256; on TPUs, inside a step of an engine, JAX's, of 16 bits, E up to 128 and
  many positions. Else XLA does.
  """
  by_xla, fused = jax.nn.dot_product_attention, {}
  by_cudnn = functools.partial(by_xla, implementation='cudnn')
  try:
    jax.eval_shape(by_cudnn, query, key, value)
    fused['cuda'] = by_cudnn
  except (RuntimeError, NotImplementedError):  # No cuDNN here, or none that takes them.
    pass
  if _suits_flash(query):
    fused['tpu'] = lambda *arrays: on_own_rows(attend_by_flash, arrays, (), check_vma=False)
  return lax.platform_dependent(query, key, value, **fused, default=by_xla) if fused else by_xla(query, key, value)


def _suits_flash(query: jax.Array) -> bool:
  batch, positions, _, channels = query.shape
  many = positions >= _MANY_POSITIONS and positions % _BLOCK == 0
  # Asked for more than bfloat16's own precision, the kernel does not compile.
  plain = jax.config.jax_default_matmul_precision in (None, 'default') and query.dtype == jnp.bfloat16
  return many and plain and channels <= TPU_LANES and cut_evenly(batch)


def attend_by_flash(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
  """`attend` by JAX's kernel for TPUs, of one device; P a multiple of 512."""
  heads_first = (array.swapaxes(1, 2) for array in (query, key, value))
  sizes = dict.fromkeys((field.name for field in dataclasses.fields(BlockSizes)), _BLOCK) | {'block_b': 1}
  found = flash_attention(*heads_first, sm_scale=query.shape[-1] ** -0.5, block_sizes=BlockSizes(**sizes))
  return found.swapaxes(1, 2)


class SelfAttention(nn.Module):
  """Every position attends to all; softmax in float32, scale 1 / sqrt(E), linear layers as in `MaskedAttention`."""

  heads: int
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x_BPC: jax.Array) -> jax.Array:
    """[B, P, C] -> [B, P, C] in `dtype`."""
    channels = x_BPC.shape[-1]
    query, key, value = (
      split_heads(Linear(channels, use_bias=False, dtype=self.dtype, name=name)(x_BPC), self.heads)
      for name in ('query', 'key', 'value')
    )
    return Linear(channels, dtype=self.dtype, name='out')(merge_heads(attend(query, key, value)))


@flax.struct.dataclass
class Lookup:
  """Masked attention of positions that have one class each, or none.

  Attributes:
    table: [B, K + 1, C], the result for every class; last for no class, which attends to all classes alike.
    classes: int [B, P], each position's class; K for none.
    key: [B, K, N, E] where scores are asked for, else None.
  """

  table: jax.Array
  classes: jax.Array
  key: jax.Array | None

  def read(self) -> jax.Array:
    """The result [B, P, C]."""
    # A product, and an exact one: the gradient of a gather would be a scatter, slow nearly everywhere.
    chosen = jax.nn.one_hot(self.classes, self.table.shape[1], dtype=self.table.dtype)
    return jnp.einsum('BPK,BKC->BPC', chosen, self.table, precision=lax.Precision.HIGHEST)


@flax.struct.dataclass
class Keys:
  """What masked attention with any mask takes of the tokens.

  Attributes:
    key: [B, K, N, E].
    value: [B, K, N, E].
    mask: float [B, P, K] that multiplies the scores; None for plain attention.
  """

  key: jax.Array
  value: jax.Array
  mask: jax.Array | None


class MaskedAttention(nn.Module):
  """Attention of a picture's positions to one token a class, restricted to the classes a position has (SCA-DM, 2024).

  Scores q k / sqrt(E) are multiplied by the mask; those that are then exactly 0 count as minus infinity, or, where all
  of a position's are, as equal. Queries, keys and values are linear without bias, the last layer has one.

  The scores before the mask, float32 [B, N, P, K], are sown as 'scores' where 'intermediates' are asked for.

  Attributes:
    channels: C.
    heads: N, divides C.
    dtype: of the work and of the results; scores and their softmax are float32.
  """

  channels: int
  heads: int
  dtype: Dtype = jnp.float32

  def setup(self):
    """Names the layers, which the methods share."""
    self.query, self.key, self.value = (Linear(self.channels, use_bias=False, dtype=self.dtype) for _ in range(3))
    self.out = Linear(self.channels, dtype=self.dtype)

  def lookup(self, tokens_BKD: jax.Array, classes_BP: jax.Array) -> Lookup:
    """One class for every position.

    It equals `keys` with the classes' one-hot mask, but for a score that is exactly 0 though its token is not, which
    the mask cannot tell from a masked one.
    """
    values = self.value(tokens_BKD)
    table = self.out(jnp.concatenate([values, values.mean(1, keepdims=True)], 1))
    # Of no use to the result, but parameters must exist, and a loss may want the scores.
    scored = self.is_initializing() or self.is_mutable_collection('intermediates')
    return Lookup(table, classes_BP, split_heads(self.key(tokens_BKD), self.heads) if scored else None)

  def keys(self, tokens_BKD: jax.Array, mask_BPK: jax.Array | None) -> Keys:
    """Any mask: soft, or of positions with several classes."""
    key, value = (split_heads(layer(tokens_BKD), self.heads) for layer in (self.key, self.value))
    return Keys(key, value, mask_BPK)

  def __call__(self, x_BPC: jax.Array, prepared: Lookup | Keys) -> jax.Array:
    """Positions [B, P, C] and what `lookup` or `keys` made of tokens and mask -> [B, P, C] in `dtype`."""
    scores = None if prepared.key is None else self._scores(x_BPC, prepared.key)
    if isinstance(prepared, Lookup):
      return prepared.read()
    if prepared.mask is not None:
      scores = scores * prepared.mask.astype(jnp.float32)[:, None]
      scores = jnp.where(scores == 0, -jnp.finfo(jnp.float32).max, scores)
    weights = nn.softmax(scores).astype(self.dtype)
    return self.out(merge_heads(jnp.einsum('BNPK,BKNE->BPNE', weights, prepared.value)))

  def _scores(self, x_BPC: jax.Array, key_BKNE: jax.Array) -> jax.Array:
    """Float32 [B, N, P, K]."""
    query = split_heads(self.query(x_BPC), self.heads)
    scores = jnp.einsum('BPNE,BKNE->BNPK', query, key_BKNE, preferred_element_type=jnp.float32)
    scores = scores * query.shape[-1] ** -0.5
    self.sow('intermediates', 'scores', scores)
    return scores
