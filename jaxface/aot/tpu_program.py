"""What a TPU's program moves to and from its main memory, counted in its text.

XLA's cost analysis counts what is fetched into on-chip memory ahead of its use twice, and what stays there as if it
left: at full effort, where the compiler keeps there what it can, three times of what goes through the main memory.
"""

import math
import re
from typing import NamedTuple

from jaxface.aot.hlo import AMONG_WORK, arrays
from jaxface.aot.program import Instruction, Program, called, operands, parse

# Of a layout: dimensions from the innermost, the sides of a tile from the outermost.
_TILE = re.compile(r'^([\d,]+):T\(([\d,]+)\)')
_ON_CHIP = 'S(1)'
# These fetch from one memory into another while work goes on.
_FETCHES = ('copy-start', 'slice-start')
# Beside what they fetch they return counters, of so many bytes at most.
_COUNTERS = 8
# Where an exchange begins and ends that runs beside work.
_EXCHANGE = 'async-collective'
_ALIAS = re.compile(r'\{(\d+)\}: \((\d+), \{\}\)')


class _Stored(NamedTuple):
  """Bytes of an array, padded to whole tiles, and whether they lie on the chip."""

  bytes: int
  on_chip: bool


def bytes_moved(text: str) -> int:
  """Bytes that a program, `compiled.as_text()`, reads from and writes to a chip's main memory, padding included.

  An operation moves all of what it is given and returns, once, but of what it only slices or updates that part; bodies
  of loops count once, and all branches.
  """
  program = parse(text)
  return sum(_moved(program, each) for each in program.executed())


def _moved(program: Program, instruction: Instruction) -> int:
  name, shape, kind, rest = instruction
  if kind in _FETCHES:
    large = [array for array in _stored(shape) if array.bytes > _COUNTERS]
    fetched = min((array.bytes for array in large), default=0)
    return fetched * sum(not array.on_chip for array in large)
  moved = program.read(instruction, main_memory, _padded) + main_memory(program.returned(instruction))
  if name.startswith(_EXCHANGE) or (kind == 'fusion' and called(rest)[0].startswith(AMONG_WORK)):
    moved -= _handed_through(program, instruction)
  return moved


def _handed_through(program: Program, instruction: Instruction) -> int:
  """Bytes of the arrays of an exchange, which are given on from one piece of work beside it to the next."""
  _, shape, _, rest = instruction
  aliases = _ALIAS.findall(rest.partition('output_to_operand_aliasing=')[2].partition(', calls=')[0])
  given, returned = operands(rest), _stored(shape)
  read = sum(main_memory(program.shapes.get(given[int(i)], '')) for i in {operand for _, operand in aliases})
  return read + sum(returned[int(i)].bytes for i, _ in aliases if not returned[int(i)].on_chip)


def main_memory(shape: str) -> int:
  """Bytes of a shape, as the TPU's compiler writes it, that lie in the main memory."""
  return sum(array.bytes for array in _stored(shape) if not array.on_chip)


def _padded(shape: str) -> int:
  return sum(array.bytes for array in _stored(shape))


def _stored(shape: str) -> list[_Stored]:
  found = []
  for itemsize, sides, layout in arrays(shape):
    padded = list(sides)
    if tiled := _TILE.match(layout):
      order, tile = ([int(n) for n in group.split(',')] for group in tiled.groups())
      for axis, side in zip(order, reversed(tile), strict=False):
        padded[axis] = -(-padded[axis] // side) * side
    found.append(_Stored(math.prod(padded) * itemsize, _ON_CHIP in layout))
  return found
