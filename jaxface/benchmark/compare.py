"""A benchmark's rates beside those of an earlier one: what became slower."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from jaxface.benchmark.meter import Row
from jaxface.errors import UserError, some

# Of the JSON: what rows are named and measured by. A change of it makes earlier files another thing.
LAYOUT = 2

# Keys of a configuration that no timed program depends on.
_IDLE = (
  'seed', 'total_steps', 'init_from', 'log_steps', 'eval_steps', 'eval_batches', 'render_steps', 'checkpoint_steps',
  'keep_last', 'keep_best', 'best_metric', 'best_is', 'data.data_dir', 'data.eval_split',
)  # fmt: skip

# What a benchmark writes: 'layout', 'environment', 'config', 'rows', and 'without_memory', the parts that did not fit.
Report = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Two benchmarks, row by row.

  Attributes:
    text: a table for people, with what is to be known about it.
    slower: names of rows that fell below what is allowed, or that no longer fit in the device's memory. Empty
      also where the two are no measure of each other, as on different chips.
    matched: rows that both have.
  """

  text: str
  slower: list[str]
  matched: int


def read_report(path: Path) -> Report:
  """What an earlier benchmark has written; UserError where the file is missing or anything else."""
  try:
    report = json.loads(path.read_text())
  except OSError as error:
    raise UserError(f'--compare {path}: {error.strerror}; give what an earlier --out has written') from error
  except ValueError as error:
    raise UserError(f'--compare {path} is no JSON; give what an earlier --out has written') from error
  strange = UserError(f"--compare {path} is no benchmark's result; give what an earlier --out has written")
  kinds = {'environment': dict, 'config': dict, 'rows': list}
  if not isinstance(report, dict) or not all(isinstance(report.get(name), kind) for name, kind in kinds.items()):
    raise strange
  if report.get('layout') != LAYOUT:
    raise UserError(
      f'--compare {path} is of layout {report.get("layout", 1)}, and this version reads layout {LAYOUT}; measure that '
      'state of the code again'
    )
  try:
    # Compared with itself, all that a comparison reads is read now, and not after an hour of measuring.
    compare(report, report)
  except (AttributeError, LookupError, TypeError, ZeroDivisionError) as error:
    raise strange from error
  return report


def check_slow_down(slow_down: float) -> None:
  """UserError where it is no share of a rate."""
  if not 0 <= slow_down < 1:
    raise UserError(f'--slow-down {slow_down:g}: must be at least 0 and less than 1; 0.1 allows ten per cent')


def compare(now: Report, earlier: Report, *, slow_down: float = 0.1) -> Comparison:
  """Every row's rate over that of the row of the same name, batch size and number of devices; see `Comparison`.

  A row is slower where this ratio is below 1 - `slow_down`. Of rows that are missing now, those count as slower whose
  part did not fit in memory: a part that was not asked for, or more devices than there are now, are no fault.
  """
  ours, theirs = (_by_name(report['rows']) for report in (now, earlier))
  both = [name for name in ours if name in theirs]
  ratios = {name: _rate(ours[name]) / _rate(theirs[name]) for name in both}
  strange = _strange(now, earlier)
  missing = [name for name in theirs if name not in ours]
  lost = [name for name in missing if _lacks_memory(theirs[name], now)]
  slower = [] if strange else [name for name in both if ratios[name] < 1 - slow_down] + lost
  lines = ['     now/s  earlier/s  ratio   calls vary by  row (pictures a second)'] if both else []
  for name in both:
    spread = f'{_variation(ours[name]):4.0%} and {_variation(theirs[name]):4.0%}'
    mark = '  SLOWER' if name in slower else ''
    lines.append(
      f'{_rate(ours[name]):10.4g} {_rate(theirs[name]):10.4g} {ratios[name]:6.3f}  {spread:>14}  {name}{mark}'
    )
  for what, names in (
    ('not in the earlier result', [name for name in ours if name not in theirs]),
    ('not measured now', [name for name in missing if name not in lost]),
    ('the device has not the memory now', lost),
  ):
    lines += [f'{what}: {name}' for name in names]
  lines += _versions(now['environment'], earlier['environment'])
  lines += strange
  if strange:
    lines.append('so the ratios are no test of the code, and none of them fails')
  elif both or lost:
    lines.append(f'slower than allowed ({slow_down:.0%}): {some(slower, 20) if slower else "nothing"}')
  return Comparison('\n'.join(lines), slower, len(both))


def _by_name(rows: Sequence[Row]) -> dict[str, Row]:
  return {f'{row["timed"]}, batch {row["batch_size"]}, devices {row["devices"]}': row for row in rows}


def _lacks_memory(row: Row, now: Report) -> bool:
  """Of a row that is missing now; rows of results from before this was told have no part."""
  fits = row['devices'] <= len(now['environment']['devices'])
  return fits and row.get('part') in now.get('without_memory', ())


def _rate(row: Row) -> float:
  return row['images_per_second']


def _variation(row: Row) -> float:
  """How far apart the slowest and the fastest tenth of calls begin, over the median."""
  spread = row['seconds_per_call']
  return (spread['p90'] - spread['p10']) / spread['median']


def _strange(now: Report, earlier: Report) -> list[str]:
  """What makes the two no measure of each other."""
  found = []
  hardware = [sorted({_kind(device) for device in report['environment']['devices']}) for report in (now, earlier)]
  if hardware[0] != hardware[1]:
    found.append(f'other devices: {", ".join(hardware[1])} earlier, {", ".join(hardware[0])} now')
  hosts = [_host(report['environment']) for report in (now, earlier)]
  if now['environment']['backend'] == 'cpu' and hosts[0] != hosts[1]:
    found.append(f'another machine: {hosts[1]} earlier, {hosts[0]} now')
  configs = [flatten_dict(report['config'], sep='.') for report in (now, earlier)]
  changed = [
    f'{key}: {configs[1].get(key)} -> {configs[0].get(key)}'
    for key in sorted(configs[0].keys() | configs[1].keys())
    if key not in _IDLE and configs[0].get(key) != configs[1].get(key)
  ]
  if changed:
    found.append(f'another configuration: {some(changed, 8)}')
  return found


def _kind(device: str) -> str:
  """'NVIDIA H200 0' -> 'NVIDIA H200'."""
  return device.rpartition(' ')[0]


def _host(environment: Mapping[str, Any]) -> str:
  return f'{environment["processor"]} with {environment["cpu_cores"]} cores'


def _versions(now: Mapping[str, Any], earlier: Mapping[str, Any]) -> list[str]:
  pairs = {name: (earlier['packages'].get(name), version) for name, version in now['packages'].items()}
  changed = [f'{name} {old} -> {new}' for name, (old, new) in pairs.items() if old != new]
  return [f'versions: {", ".join(changed)}'] if changed else []
