"""What a GPU's program computes and moves, counted in its text: XLA's cost analysis does not answer without a GPU."""

import dataclasses
import math
import re

from jaxface.aot.hlo import bytes_of, shapes_of
from jaxface.aot.program import called, operands, parse


@dataclasses.dataclass(frozen=True)
class Work:
  """What a program does on one device in a step: FLOP of its convolutions and products, bytes read and written."""

  flops: float
  bytes_moved: float


_CONVOLUTION = re.compile(r'custom_call_target="__cudnn\$conv(\w+)"')
_ATTENTION = re.compile(r'custom_call_target="__cudnn\$fmha\w*?(Backward)?"')
_SCORES = re.compile(r'"intermediate_tensor_shape":.*?"dimensions":\s*\[([^\]]*)\]')
_SCRATCH = re.compile(r'[su]8\[\d*\]\{0\}')
_PRODUCT = re.compile(r'"lhs_contracting_dimensions":\[([^\]]*)\]')


def work(text: str) -> Work:
  """Counts a GPU's program, `compiled.as_text()`.

  An operation moves all of what it is given and returns, once, but of what it only slices or updates that part; bodies
  of loops count once, and all branches.
  """
  program = parse(text)
  flops = moved = 0.0
  for instruction in program.executed():
    _, shape, kind, rest = instruction
    flops += _flops(shape, kind, rest, program.shapes)
    if kind == 'fusion':
      for inner in called(rest):
        flops += sum(_flops(s, k, r, program.shapes) for _, s, k, r in program.computations[inner].instructions)
    read = program.read(instruction, _size)
    if kind.endswith('-start'):
      # What comes out is as large as what goes in, or stands beside it.
      moved += 2 * read
    else:
      returned = program.returned(instruction)
      # A library's call returns its scratch memory, too.
      moved += read + _size(_SCRATCH.sub('', returned) if kind == 'custom-call' else returned)
  return Work(flops, moved)


def _size(shape: str) -> int:
  return sum(bytes_of(shape))


def _flops(shape: str, kind: str, rest: str, shapes: dict[str, str]) -> float:
  if kind == 'dot':
    return _of_product(shape, rest, shapes, re.search(r'lhs_contracting_dims=\{([\d,]*)\}', rest)[1])
  if kind != 'custom-call':
    return 0.0
  if product := _PRODUCT.search(rest):
    return _of_product(shape, rest, shapes, product[1].replace('"', ''))
  if convolution := _CONVOLUTION.search(rest):
    first, second = (shapes_of(shapes[name])[0] for name in operands(rest)[:2])
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
  left = shapes_of(shapes[operands(rest)[0]])[0]
  return 2.0 * math.prod(shapes_of(shape)[0]) * math.prod(left[int(axis)] for axis in contracted.split(',') if axis)
