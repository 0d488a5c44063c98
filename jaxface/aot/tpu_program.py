"""What a TPU's program moves to and from its main memory, counted in its text.

XLA's cost analysis counts what is fetched into on-chip memory ahead of its use twice, and what stays there as if it
left: at full effort, where the compiler keeps there what it can, three times of what goes through the main memory.
"""

import math
import re
from typing import NamedTuple

from jaxface.aot.hlo import AMONG_WORK, BYTES
from jaxface.aot.program import FREE, Instruction, Program, called, operands, parse

_ARRAY = re.compile(r'\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](?:\{([^{}]*)\})?')
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


class _Array(NamedTuple):
  """Bytes, padded to whole tiles, and whether they lie on the chip."""

  bytes: int
  on_chip: bool


def bytes_moved(text: str) -> int:
  """Bytes that a program, `compiled.as_text()`, reads from and writes to a chip's main memory, padding included.

  An operation moves all of what it is given and returns, once, but of what it only slices or updates that part; bodies
  of loops count once, and all branches.
  """
  program = parse(text)
  return sum(_moved(program, each) for each in program.executed() if each[2] not in FREE)


def _moved(program: Program, instruction: Instruction) -> int:
  name, shape, kind, rest = instruction
  if kind.endswith('-done'):
    return 0
  if kind in _FETCHES:
    arrays = [array for array in _arrays(shape) if array.bytes > _COUNTERS]
    fetched = min((array.bytes for array in arrays), default=0)
    return fetched * sum(not array.on_chip for array in arrays)
  moved = program.read(instruction, main_memory, _padded) + main_memory(program.returned(instruction))
  if name.startswith(_EXCHANGE) or (kind == 'fusion' and called(rest)[0].startswith(AMONG_WORK)):
    moved -= _handed_through(program, instruction)
  return moved


def _handed_through(program: Program, instruction: Instruction) -> int:
  """Bytes of the arrays of an exchange, which are given on from one piece of work beside it to the next."""
  _, shape, _, rest = instruction
  aliases = _ALIAS.findall(rest.partition('output_to_operand_aliasing=')[2].partition(', calls=')[0])
  given, returned = operands(rest), _arrays(shape)
  read = sum(main_memory(program.shapes.get(given[int(i)], '')) for i in {operand for _, operand in aliases})
  return read + sum(returned[int(i)].bytes for i, _ in aliases if not returned[int(i)].on_chip)


def main_memory(shape: str) -> int:
  """Bytes of a shape, as the TPU's compiler writes it, that lie in the main memory."""
  return sum(array.bytes for array in _arrays(shape) if not array.on_chip)


def _padded(shape: str) -> int:
  return sum(array.bytes for array in _arrays(shape))


def _arrays(shape: str) -> list[_Array]:
  found = []
  for dtype, sides, layout in _ARRAY.findall(shape):
    if dtype not in BYTES:
      continue
    sides = [int(side) for side in sides.split(',') if side]
    if tiled := _TILE.match(layout):
      order, tile = ([int(n) for n in group.split(',')] for group in tiled.groups())
      for axis, side in zip(order, reversed(tile), strict=False):
        sides[axis] = -(-sides[axis] // side) * side
    found.append(_Array(math.prod(sides) * BYTES[dtype], _ON_CHIP in layout))
  return found
