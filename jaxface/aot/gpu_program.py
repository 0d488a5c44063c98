"""What a GPU's program computes and moves, counted in its text: XLA's cost analysis does not answer without a GPU."""

import collections
import dataclasses
import math
import re

from jaxface.aot.hlo import COMPUTATION, bytes_of, shapes_of


@dataclasses.dataclass(frozen=True)
class Work:
  """What a program does on one device in a step: FLOP of its convolutions and products, bytes read and written."""

  flops: float
  bytes_moved: float


# Name, shape, opcode, the rest of the line.
_Instruction = tuple[str, str, str, str]
_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$')
_OPERAND = re.compile(r'%([\w.\-]+)')
# Of these nothing is moved: names for what is there already, and the ends of what began elsewhere.
_FREE = ('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'after-all', 'partition-id', 'replica-id')
_CALLED = re.compile(r'(?:body|condition|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)')
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_CONVOLUTION = re.compile(r'custom_call_target="__cudnn\$conv(\w+)"')
_ATTENTION = re.compile(r'custom_call_target="__cudnn\$fmha\w*?(Backward)?"')
_SCORES = re.compile(r'"intermediate_tensor_shape":.*?"dimensions":\s*\[([^\]]*)\]')
# These read no more of what they are given than they return.
_SLICES = ('slice', 'dynamic-slice', 'gather')
# And this writes its update alone, where its result lies.
_UPDATE = 'dynamic-update-slice'
_SCRATCH = re.compile(r'[su]8\[\d*\]\{0\}')
_PRODUCT = re.compile(r'"lhs_contracting_dimensions":\[([^\]]*)\]')


def work(text: str) -> Work:
  """Counts a GPU's program, `compiled.as_text()`.

  An operation moves all of what it is given and returns, once, but of what it only slices or updates that part; bodies
  of loops count once, and all branches.
  """
  computations, shapes = _parse(text)
  flops = moved = 0.0
  waiting = [next(name for name, lines in computations.items() if lines.entry)]
  seen = set()
  while waiting:
    name = waiting.pop()
    if name in seen or name not in computations:
      continue
    seen.add(name)
    for instruction in computations[name].instructions:
      _, shape, kind, rest = instruction
      if kind in ('while', 'conditional', 'call'):
        waiting += _called(rest)
        continue
      flops += _flops(shape, kind, rest, shapes)
      if kind == 'fusion':
        for inner in _called(rest):
          flops += sum(_flops(s, k, r, shapes) for _, s, k, r in computations[inner].instructions)
      if kind not in _FREE and not kind.endswith('-done'):
        inside = computations[_called(rest)[0]].instructions if kind == 'fusion' else [instruction]
        moved += _moved(shape, kind, rest, shapes, inside)
  return Work(flops, moved)


@dataclasses.dataclass
class _Computation:
  entry: bool
  instructions: list[_Instruction] = dataclasses.field(default_factory=list)


def _parse(text: str) -> tuple[dict[str, _Computation], dict[str, str]]:
  """Instructions by computation, and all shapes by name."""
  computations, shapes, current = {}, {}, None
  for line in text.splitlines():
    if head := COMPUTATION.match(line):
      current = computations[head[1]] = _Computation(line.startswith('ENTRY'))
    elif current is not None and (found := _INSTRUCTION.match(line)):
      current.instructions.append(found.groups())
      shapes[found[1]] = found[2]
  return computations, shapes


def _called(rest: str) -> list[str]:
  branches = _BRANCHES.search(rest)
  return _CALLED.findall(rest) + (_OPERAND.findall(branches[1]) if branches else [])


def _operands(rest: str) -> list[str]:
  return _OPERAND.findall(rest.partition('), ')[0])


def _moved(shape: str, kind: str, rest: str, shapes: dict[str, str], inside: list[_Instruction]) -> int:
  """Bytes an operation reads and writes; `inside` is what a fusion consists of, of any other the operation itself."""
  read = _read(rest, shapes, inside)
  if kind.endswith('-start'):
    # What comes out is as large as what goes in, or stands beside it.
    return 2 * read
  _, _, last_kind, last_rest = inside[-1]
  if last_kind == _UPDATE:
    shape = shapes[_operands(last_rest)[1]]
  # A library's call returns its scratch memory, too.
  return read + sum(bytes_of(_SCRATCH.sub('', shape) if kind == 'custom-call' else shape))


def _read(rest: str, shapes: dict[str, str], inside: list[_Instruction]) -> int:
  # A fusion's operands have names of their own inside; one that is given twice is read once.
  named = {int(rest.partition(')')[0]): name for name, _, kind, rest in inside if kind == 'parameter'}
  operands = collections.defaultdict(list)
  for number, name in enumerate(_operands(rest)):
    operands[name].append(_part(named.get(number, name), inside))
  total = 0
  for name, parts in operands.items():
    size = sum(bytes_of(shapes.get(name, '')))
    total += size if None in parts else min(size, sum(parts))
  return total


def _part(name: str, inside: list[_Instruction]) -> int | None:
  """Bytes that are read of what is only sliced or updated inside; None where anything else is done with it."""
  total = 0
  for user, shape, kind, rest in inside:
    operands = _operands(rest)
    if name not in operands:
      continue
    part = None
    if kind == 'bitcast':
      part = _part(user, inside)
    elif name not in operands[1:]:
      part = {_UPDATE: 0, **dict.fromkeys(_SLICES, sum(bytes_of(shape)))}.get(kind)
    if part is None:
      return None
    total += part
  return total


def _flops(shape: str, kind: str, rest: str, shapes: dict[str, str]) -> float:
  if kind == 'dot':
    return _of_product(shape, rest, shapes, re.search(r'lhs_contracting_dims=\{([\d,]*)\}', rest)[1])
  if kind != 'custom-call':
    return 0.0
  if product := _PRODUCT.search(rest):
    return _of_product(shape, rest, shapes, product[1].replace('"', ''))
  if convolution := _CONVOLUTION.search(rest):
    first, second = (shapes_of(shapes[name])[0] for name in _operands(rest)[:2])
    result = shapes_of(shape)[0]
    # Of the three arrays of a convolution, which two are its kernel and its output.
    kernel, output = {
      'BackwardFilter': (result, second), 'BackwardInput': (second, first),
    }.get(convolution[1], (second, result))  # fmt: skip
    labels = re.search(r'dim_labels=\w+_\w+->(\w+)', rest)[1]
    return 2.0 * math.prod(output) * math.prod(kernel) / output[labels.index('f')]
  if attention := _ATTENTION.search(rest):
    scores = math.prod(int(side) for side in _SCORES.search(rest)[1].replace('"', '').split(','))
    # Back, the scores are computed anew, and then their gradient and those of queries, keys and values.
    return (5 if attention[1] else 2) * 2.0 * scores * shapes_of(shape)[0][-1]
  return 0.0


def _of_product(shape: str, rest: str, shapes: dict[str, str], contracted: str) -> float:
  left = shapes_of(shapes[_operands(rest)[0]])[0]
  return 2.0 * math.prod(shapes_of(shape)[0]) * math.prod(left[int(axis)] for axis in contracted.split(',') if axis)
