"""A compiled program, read from its text: its instructions, and how many bytes one reads and writes."""

import collections
import dataclasses
import re
from collections.abc import Callable

from jaxface.aot.hlo import COMPUTATION

# Name, shape, opcode, the rest of the line.
Instruction = tuple[str, str, str, str]
# Bytes of a shape, as HLO writes it.
Size = Callable[[str], int]

# Names for what is there already.
_FREE = ('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'after-all', 'partition-id', 'replica-id')
# These stand for what others do.
_CALLS = ('while', 'conditional', 'call')

_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$')
_OPERAND = re.compile(r'%([\w.\-]+)')
_CALLED = re.compile(r'(?:body|condition|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)')
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
# These read no more of what they are given than they return.
_SLICES = ('slice', 'dynamic-slice', 'gather')
# And this writes its update alone, where its result lies.
_UPDATE = 'dynamic-update-slice'


@dataclasses.dataclass
class Computation:
  """A part of a program; `entry` is where it begins."""

  entry: bool
  instructions: list[Instruction] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Program:
  """Computations by name, and the shapes of all their instructions by name."""

  computations: dict[str, Computation] = dataclasses.field(default_factory=dict)
  shapes: dict[str, str] = dataclasses.field(default_factory=dict)

  def executed(self) -> list[Instruction]:
    """What computes or moves anything, fusions whole; bodies of loops once, and all branches."""
    found, seen = [], set()
    waiting = [next(name for name, each in self.computations.items() if each.entry)]
    while waiting:
      name = waiting.pop()
      if name in seen or name not in self.computations:
        continue
      seen.add(name)
      for instruction in self.computations[name].instructions:
        if instruction[2] in _CALLS:
          waiting += called(instruction[3])
        elif instruction[2] not in _FREE and not instruction[2].endswith('-done'):
          found.append(instruction)
    return found

  def inside(self, instruction: Instruction) -> list[Instruction]:
    """What a fusion consists of; of any other instruction itself."""
    fused = called(instruction[3])[:1] if instruction[2] == 'fusion' else []
    return self.computations[fused[0]].instructions if fused else [instruction]

  def read(self, instruction: Instruction, size: Size, part: Size | None = None) -> int:
    """Bytes an instruction reads: once what it is given twice, and of what it only slices or updates that part.

    `part` is the size of what it slices inside, where that is another.
    """
    inside = self.inside(instruction)
    # A fusion's operands have names of their own inside.
    named = {int(rest.partition(')')[0]): name for name, _, kind, rest in inside if kind == 'parameter'}
    given = collections.defaultdict(list)
    for number, name in enumerate(operands(instruction[3])):
      given[name].append(_part(named.get(number, name), inside, part or size))
    total = 0
    for name, parts in given.items():
      whole = size(self.shapes.get(name, ''))
      total += whole if None in parts else min(whole, sum(parts))
    return total

  def returned(self, instruction: Instruction) -> str:
    """The shape of what an instruction writes: what it returns, or where it updates something in place, the update."""
    _, _, kind, rest = self.inside(instruction)[-1]
    return self.shapes.get(operands(rest)[1], '') if kind == _UPDATE else instruction[1]


def parse(text: str) -> Program:
  """Reads `compiled.as_text()`."""
  program, current = Program(), None
  for line in text.splitlines():
    if head := COMPUTATION.match(line):
      current = program.computations[head[1]] = Computation(line.startswith('ENTRY'))
    elif current is not None and (found := _INSTRUCTION.match(line)):
      current.instructions.append(found.groups())
      program.shapes[found[1]] = found[2]
  return program


def called(rest: str) -> list[str]:
  """The computations that an instruction calls."""
  branches = _BRANCHES.search(rest)
  return _CALLED.findall(rest) + (_OPERAND.findall(branches[1]) if branches else [])


def operands(rest: str) -> list[str]:
  """What an instruction is given."""
  return _OPERAND.findall(rest.partition('), ')[0])


def _part(name: str, inside: list[Instruction], size: Size) -> int | None:
  """Bytes that are read of what is only sliced or updated inside; None where anything else is done with it."""
  total = 0
  for user, shape, kind, rest in inside:
    given = operands(rest)
    if name not in given:
      continue
    part = None
    if kind == 'bitcast':
      part = _part(user, inside, size)
    elif name not in given[1:]:
      part = {_UPDATE: 0, **dict.fromkeys(_SLICES, size(shape))}.get(kind)
    if part is None:
      return None
    total += part
  return total
