"""The work of a model as its formulas say: additions and multiplications of matrix products and convolutions.

It is read from what JAX traces, before any compiler, and so is the same number on every backend and for any number of
devices. What XLA counts of a compiled program is not: work in a loop once, kernels of a GPU's libraries not at all.

As "model FLOPs utilisation" has it, what is computed twice counts once, whether to save memory or because a compiler
sees to it, and what no result needs not at all. Products with the zeros around and between a convolution's numbers are
left out, and so is whatever handles numbers one by one.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

# Primitives that run the program they hold once, on what they are given.
_CALLS = ('jit', 'pjit', 'closed_call', 'core_call', 'remat2', 'checkpoint', 'custom_jvp_call', 'custom_vjp_call')


def count_flops(function: Callable[..., Any], *arguments: Any) -> float:
  """Of one call of a function, compiled or not, on all devices together.

  NaN where it cannot be known: products in a loop of unknown length, in a kernel, in one of several branches.
  """
  return float(_count(jax.make_jaxpr(function)(*arguments).jaxpr))


def _count(jaxpr: core.Jaxpr) -> float:
  values = _Values()
  return values.work(values.run(jaxpr, [values.add(given) for given in jaxpr.invars]))


class _Values:
  """What a program computes. A value is (step, which of its results), and equal steps are one."""

  def __init__(self):
    self._steps: dict[Hashable, int] = {}
    # Of every step, its work and the steps before it.
    self._work: list[float] = []
    self._before: list[set[int]] = []

  def add(self, step: Hashable, work: Callable[[], float] = lambda: 0, given: Iterable[tuple[int, int]] = ()) -> Any:
    """The first result of a step; `work` is asked for where the step is new."""
    if step not in self._steps:
      self._steps[step] = len(self._work)
      self._work.append(work())
      self._before.append({before for before, _ in given})
    return self._steps[step], 0

  def work(self, wanted: Iterable[tuple[int, int]]) -> float:
    """Of all steps that these values come from."""
    waiting = {step for step, _ in wanted}
    needed = set()
    while waiting:
      step = waiting.pop()
      needed.add(step)
      waiting |= self._before[step] - needed
    return sum(self._work[step] for step in needed)

  def run(self, jaxpr: core.Jaxpr, given: Sequence[Any], copies: int = 1) -> list[Any]:
    """Adds the steps of a program, which so many devices run each on its part; returns its results."""
    known = dict(zip(jaxpr.invars, given, strict=True))

    def value(atom: Any) -> Any:
      if isinstance(atom, core.Literal):
        return self.add((str(atom.aval), str(atom.val)))
      return known[atom] if atom in known else self.add(atom)  # A constant.

    for equation in jaxpr.eqns:
      results = self._equation(equation, tuple(value(atom) for atom in equation.invars), copies)
      known.update(zip(equation.outvars, results, strict=True))
    return [value(atom) for atom in jaxpr.outvars]

  def _equation(self, equation: core.JaxprEqn, given: tuple[Any, ...], copies: int) -> Sequence[Any]:
    name, params = equation.primitive.name, equation.params
    inner = list(core.jaxprs_in_params(params))
    if name in _CALLS:
      return self.run(inner[0], given, copies)
    if name == 'shard_map':
      return self.run(inner[0], given, copies * math.prod(params['mesh'].shape[a] for a in params['newly_manual_axes']))
    platforms = params.get('branches_platforms') or ()
    if None in platforms:
      # The others may do with fewer multiplications, or with products for something else.
      return self.run(inner[platforms.index(None)], given[1:], copies)
    step = (name, tuple(sorted(params.items())), given)
    try:
      hash(step)
    except TypeError:  # Of a parameter that is an array.
      step = (id(equation), given)
    number, _ = self.add(step, lambda: copies * _work(equation, inner), given)
    return [(number, i) for i in range(len(equation.outvars))]


def _work(equation: core.JaxprEqn, inner: Sequence[core.Jaxpr]) -> float:
  name = equation.primitive.name
  if name == 'dot_general':
    return _product(equation)
  if name == 'conv_general_dilated':
    return _convolution(equation)
  each = {_count(jaxpr) for jaxpr in inner}
  if name == 'scan':
    return equation.params['length'] * each.pop()
  if name == 'cond' and len(each) == 1:
    return each.pop()
  return math.nan if any(each) else 0


def _product(equation: core.JaxprEqn) -> int:
  (contracted, _), _ = equation.params['dimension_numbers']
  left = equation.invars[0].aval.shape
  return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _convolution(equation: core.JaxprEqn) -> int:
  params, layout = equation.params, equation.params['dimension_numbers']
  x, kernel = (operand.aval.shape for operand in equation.invars)
  y = equation.outvars[0].aval.shape
  # Groups or not, every number of y sees as many channels as the kernel has.
  channels = y[layout.out_spec[0]] * y[layout.out_spec[1]] * kernel[layout.rhs_spec[1]]
  axes = zip(layout.lhs_spec[2:], layout.rhs_spec[2:], layout.out_spec[2:], strict=True)
  ways = zip(params['window_strides'], params['padding'], params['lhs_dilation'], params['rhs_dilation'], strict=True)
  met = (
    _met(x[i], kernel[k], y[o], stride, padding[0], apart, taps_apart)
    for (i, k, o), (stride, padding, apart, taps_apart) in zip(axes, ways, strict=True)
  )
  return 2 * channels * math.prod(met)


def _met(side: int, taps: int, outputs: int, stride: int, before: int, apart: int, taps_apart: int) -> int:
  """Along one axis, how often a tap meets one of the `side` numbers that lie `apart`, and not a zero."""
  place = stride * np.arange(outputs)[:, None] + taps_apart * np.arange(taps) - before
  return int(np.sum((place >= 0) & (place <= apart * (side - 1)) & (place % apart == 0)))
