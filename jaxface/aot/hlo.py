"""What a compiled program exchanges between devices, read from its text."""

import collections
import dataclasses
import math
import re
from typing import NamedTuple

# Kinds of exchange, as HLO calls them.
KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')

_BYTES = {'pred': 1, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'bf16': 2, 'f16': 2, 's32': 4, 'u32': 4, 'f32': 4}
_BYTES |= {'s64': 8, 'u64': 8, 'f64': 8, 'f8e4m3fn': 1, 'f8e5m2': 1}
_OPERATION = re.compile(rf'= (.*?) ({"|".join(KINDS)})(-start)?\(')
_ARRAY = re.compile(r'\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](?:\{([^{}]*)\})?')
_CHANNEL = re.compile(r'channel_id=(\d+)')
# The head of a computation: its name, its parameters, an arrow.
COMPUTATION = re.compile(r'^(?:ENTRY )?%?([\w.\-]+) \(.*\{$')
# The TPU's compiler puts an exchange into fusions with the work that runs meanwhile.
AMONG_WORK = 'async_collective_fusion'
# And writes a reduce-scatter as a fusion of an all-reduce and what each device takes of it.
_CUT = 'all-reduce-scatter'
# What goes to another slice goes through the host.
_BY_HOST = 'is_host_transfer=true'
# The GPU's compiler begins all of them apart, and notes where nothing runs meanwhile.
_WAITS = '"is_sync":true'


def shapes_of(text: str) -> list[tuple[int, ...]]:
  """The sides of the arrays that a shape, as HLO writes it, has."""
  return [array.sides for array in arrays(text)]


def bytes_of(text: str) -> list[int]:
  """The sizes of the arrays that a shape, as HLO writes it, has."""
  return [math.prod(array.sides) * array.itemsize for array in arrays(text)]


class Array(NamedTuple):
  """An array of a shape: bytes of a number, sides, and how they lie in memory, as HLO writes it."""

  itemsize: int
  sides: tuple[int, ...]
  layout: str


def arrays(text: str) -> list[Array]:
  """The arrays that a shape, as HLO writes it, has."""
  return [
    Array(_BYTES[dtype], tuple(int(side) for side in sides.split(',') if side), layout)
    for dtype, sides, layout in _ARRAY.findall(text)
    if dtype in _BYTES
  ]


@dataclasses.dataclass(frozen=True)
class Collective:
  """One exchange: its kind, the bytes that every device has of it in the end or gives to it, and whether work overlaps.

  For all-reduce that is the reduced array, for all-gather the gathered one, for reduce-scatter the one that is cut.
  """

  kind: str
  bytes: int
  overlapped: bool
  source: str


def collectives(text: str) -> list[Collective]:
  """All exchanges of a program, `compiled.as_text()`, in the order of the text; bodies of loops count once."""
  found: dict[str, Collective] = {}
  computation = ''
  for line in text.splitlines():
    if head := COMPUTATION.match(line):
      computation = head[1]
      continue
    operation = _OPERATION.search(line)
    if operation is None:
      continue
    shapes, kind, start = operation.groups()
    size = _size(kind, shapes, bool(start), line)
    kind = 'reduce-scatter' if computation.startswith(_CUT) else kind
    channel = _CHANNEL.search(line)
    # One exchange is written once for each piece of work that it runs among, always on the same channel; others,
    # of another kind or size, may have that, too.
    key = f'{channel[1]} {kind} {size}' if channel else f'{computation} {len(found)}'
    begun = bool(start) and _WAITS not in line
    overlapped = begun or computation.startswith(AMONG_WORK) or (key in found and found[key].overlapped)
    found[key] = Collective(kind, size, overlapped, _source(line))
  return list(found.values())


def _size(kind: str, shapes: str, start: bool, line: str) -> int:
  each = bytes_of(shapes)
  if start and kind != 'all-reduce':
    # What goes in and what comes out, each one array or several, and sometimes two counters.
    groups = re.findall(r'\(([^()]*)\)', shapes[1:]) if shapes.startswith('((') else []
    return max([sum(bytes_of(group)) for group in groups] or each, default=0)
  if kind == 'reduce-scatter':
    return sum(each) * _group_size(line)
  return sum(each)


def _group_size(line: str) -> int:
  if iota := re.search(r'replica_groups=\[\d+,(\d+)\]', line):
    return int(iota[1])
  if listed := re.search(r'replica_groups=\{\{([\d,]+)\}', line):
    return len(listed[1].split(','))
  # Named axes of a mesh: the sides of the named ones, multiplied.
  mesh = re.search(r'replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}', line)
  if mesh is None:
    return 1
  sides = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
  return math.prod(int(sides[name]) for name in re.findall(r"'(\w+)'", mesh[2]))


def _source(line: str) -> str:
  found = re.search(r'op_name="([^"]*)"', line)
  return found[1] if found else ''


def by_kind(exchanges: list[Collective]) -> dict[str, dict[str, int]]:
  """{kind: {count, bytes, overlapped, overlapped_bytes}}, only of kinds that occur."""
  table: dict[str, dict[str, int]] = {}
  for kind, group in _grouped(exchanges).items():
    hidden = [each for each in group if each.overlapped]
    table[kind] = {
      'count': len(group),
      'bytes': sum(each.bytes for each in group),
      'overlapped': len(hidden),
      'overlapped_bytes': sum(each.bytes for each in hidden),
    }
  return table


def _grouped(exchanges: list[Collective]) -> dict[str, list[Collective]]:
  groups = collections.defaultdict(list)
  for each in exchanges:
    groups[each.kind].append(each)
  return {kind: groups[kind] for kind in KINDS if kind in groups}


def from_other_slices(text: str) -> tuple[int, int]:
  """How often a TPU receives from other slices, through its host, and how many bytes; not among `collectives`."""
  received = [line.partition(' recv(')[0] for line in text.splitlines() if ' recv(' in line and _BY_HOST in line]
  # What is received, and two counters.
  return len(received), sum(bytes_of(shapes)[0] for shapes in received)


def loops(text: str) -> int:
  """How many loops a program has; XLA counts the work of a body once."""
  return len(re.findall(r' while\(', text))
