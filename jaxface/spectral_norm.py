"""Spectral normalisation (Miyato et al. 2018): a matrix over its largest singular value, followed by power iteration.

Both singular vectors are kept, as public checkpoints keep them, so that evaluation repeats what training last computed.
"""

# K rows: a kernel's window and input channels | O columns: its output channels

import jax
import jax.numpy as jnp
from jax import lax

# Sigma scales every weight: an accelerator's rounded products would shift the whole layer.
_PRECISION = lax.Precision.HIGHEST


def _unit(vector: jax.Array) -> jax.Array:
  return vector / (jnp.linalg.norm(vector) + 1e-12)


def power_iteration(matrix_KO: jax.Array, u_O: jax.Array) -> tuple[jax.Array, jax.Array]:
  """One step from the right singular vector `u_O`: (u_O, v_K) of length 1, nearer to the first pair. No gradient."""
  matrix_KO = lax.stop_gradient(matrix_KO)
  v_K = _unit(jnp.dot(matrix_KO, u_O, precision=_PRECISION))
  return _unit(jnp.dot(v_K, matrix_KO, precision=_PRECISION)), v_K


def largest_singular_value(matrix_KO: jax.Array, u_O: jax.Array, v_K: jax.Array) -> jax.Array:
  """v' M u, scalar; the vectors are constants, so its gradient is the outer product of v and u."""
  u_O, v_K = lax.stop_gradient((u_O, v_K))
  return jnp.dot(jnp.dot(v_K, matrix_KO, precision=_PRECISION), u_O, precision=_PRECISION)
