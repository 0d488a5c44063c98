"""How long the TPU's compiler itself expects a program to take, from the cycles it writes beside each operation.

Unlike `roofline` it knows how well an operation's shapes fill the chip, and all rounds of a loop are counted. But it
takes operations one after another, and knows nothing of exchanges and of what has no such number: kernels by Pallas,
gathers. Good for telling which of two programs is the faster.
"""

import re

from jaxface.aot.program import Program, called, parse

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_CONDITION = re.compile(r'condition=%?([\w.\-]+)')


def cycles(text: str) -> int:
  """Of a program, `compiled.as_text()`; of branches the longest."""
  program = parse(text)
  return _of(program, next(name for name, each in program.computations.items() if each.entry))


def _of(program: Program, computation: str) -> int:
  total = 0
  for _, _, kind, rest in program.computations[computation].instructions:
    if kind == 'while':
      total += _rounds(program, rest) * sum(_of(program, name) for name in called(rest))
    elif kind == 'conditional':
      total += max(_of(program, name) for name in called(rest))
    elif kind == 'call':
      total += sum(_of(program, name) for name in called(rest))
    elif found := _CYCLES.search(rest):
      total += int(found[1])
  return total


def _rounds(program: Program, rest: str) -> int:
  """Of a loop, which counts up from 0 to the one constant of its condition; 1 where there is no such number."""
  condition = program.computations[_CONDITION.search(rest)[1]].instructions
  limits = [int(rest.partition(')')[0]) for _, _, kind, rest in condition if kind == 'constant' and rest[0].isdecimal()]
  return max(limits, default=1)
