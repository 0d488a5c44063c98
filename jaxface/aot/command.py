"""`jaxface compile`: what a step needs on a TPU pod or GPUs that are not there, from their own compiler."""

import argparse
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxface.errors import UserError
from jaxface.folders import check_writable

if TYPE_CHECKING:
  from ml_collections import ConfigDict

  from jaxface.aot.step import Compiled


def register(subparsers: 'argparse._SubParsersAction', load_config: Callable[..., 'ConfigDict']) -> None:
  """Adds the command `compile` to argparse's subparsers; `load_config` reads an experiment and its overrides."""
  text = 'compile a step for TPUs or GPUs, on any machine: memory, work, exchanges, and the time they take at least'
  command = subparsers.add_parser('compile', help=text, description=text)
  command.set_defaults(run=lambda args: _run(args, load_config), takes_overrides=True)
  command.add_argument('--config', required=True, help='FILE:VARIANT, such as experiments/scadm.py:published')
  command.add_argument('--topology', required=True, help='v5e:4x4, v5p:4x4x4, h200:8 and the like')
  command.add_argument('--slices', type=int, default=1, help='several of them, joined by the data-centre network')
  command.add_argument('--mesh', help="data=N,fsdp=M with N x M devices; default: the configuration's fsdp")
  command.add_argument('--step', choices=('train', 'evaluate'), default='train', help='which one; default train')
  command.add_argument(
    '--sweep', metavar='TOPOLOGY,...', help='compile for these as well, with as many pictures a chip: weak scaling'
  )
  command.add_argument(
    '--quick',
    action='store_true',
    help='in a sixth of the time; on a TPU nothing is kept on the chip, and exchanges wait',
  )
  command.add_argument('--out', type=Path, metavar='FILE.json', help='write the result')
  command.add_argument('--hlo', type=Path, metavar='DIR', help='write the programs, as the compiler left them')


def _run(args: argparse.Namespace, load_config: Callable[..., 'ConfigDict']) -> int:
  from jaxface.aot.topology import get_topology, without_devices

  without_devices()
  config = load_config(args.config, args.overrides)
  topologies = [
    get_topology(name, args.slices) for name in [args.topology, *filter(None, (args.sweep or '').split(','))]
  ]
  if args.mesh:
    config.parallel.fsdp = fsdp_of(args.mesh, len(topologies[0].devices))

  if args.out is not None:
    check_writable(args.out)
  if args.hlo is not None:
    if args.hlo == args.out:
      raise UserError(f'--hlo {args.hlo} is a folder and --out a file; give two names')
    check_writable(_program_file(args.hlo, topologies[0].name), '--hlo')

  from jaxface.aot.advice import advice
  from jaxface.aot.step import compile_step
  from jaxface.meshes import check_fsdp

  # All that can be wrong of any of them is found before the first is compiled.
  rows, found = config.batch_size / topologies[0].chips, []
  batches = [_whole(rows * topology.chips, topology.name) for topology in topologies]
  for topology in topologies:
    check_fsdp(config.parallel.fsdp, topology.devices)
  for topology, config.batch_size in zip(topologies, batches, strict=True):
    print(f'compiling for {topology.name} ...', flush=True)
    compiled = compile_step(config, topology, step=args.step, quick=args.quick)
    if args.hlo is not None and compiled.fits:
      _program_file(args.hlo, topology.name).write_text(compiled.text)
    found.append(dataclasses.replace(compiled, text=''))
    print(report(args.config, compiled))
    if not compiled.fits:
      print('what would make it fit, by estimate:')
      print('\n'.join(f'  {line}' for line in advice(config, compiled)))
    print(flush=True)
  if len(found) > 1:
    print(scaling_table(found))
  if args.out is not None:
    from jaxface.workdir import write_atomically

    write_atomically(args.out, json.dumps([as_json(args.config, each) for each in found], indent=2) + '\n')
    print(f'written: {args.out}')
  return 0 if all(each.fits for each in found) else 1


def _program_file(folder: Path, topology: str) -> Path:
  return folder / f'{topology.replace(":", "_")}.txt'


def _whole(rows: float, name: str) -> int:
  if rows != int(rows):
    raise UserError(f'the same batch a chip is {rows:g} rows on {name}; choose a batch_size that all topologies divide')
  return int(rows)


def fsdp_of(mesh: str, devices: int) -> int:
  """The side 'fsdp' of a mesh written 'data=16,fsdp=4'; either may be left out.

  Raises:
    UserError: another axis, or sides that do not multiply to `devices`.
  """
  sides = {}
  for word in mesh.split(','):
    name, _, side = word.partition('=')
    if name not in ('data', 'fsdp') or not side.isdecimal() or int(side) < 1 or name in sides:
      raise UserError(f'--mesh {mesh}: {word!r} is no side of a mesh; write data=N,fsdp=M')
    sides[name] = int(side)
  fsdp = sides['fsdp'] if 'fsdp' in sides else max(devices // sides['data'], 1)
  data = sides.get('data', devices // fsdp)
  if data * fsdp != devices:
    fitting = [f'data={devices // n},fsdp={n}' for n in range(1, devices + 1) if devices % n == 0]
    raise UserError(
      f'--mesh {mesh} has {data * fsdp} devices, the topology {devices}; choose from {"; ".join(fitting)}'
    )
  return fsdp


def report(name: str, compiled: 'Compiled') -> str:
  """What a person wants to know of one compiled step, several lines."""
  from jaxface.meshes import TPU_ROWS

  topology, memory = compiled.topology, compiled.memory
  slices = f'{topology.slices} x ' if topology.slices > 1 else ''
  lines = [
    f'{name}, {compiled.step} step, {compiled.dtype}, batch {compiled.batch_size} '
    f'({compiled.batch_size / topology.chips:g} a chip), on {slices}{topology.name}: {topology.chips} chips, '
    f'{topology.devices[0].device_kind}, mesh {",".join(f"{k}={v}" for k, v in compiled.mesh.items())}; '
    f'compiled in {compiled.seconds_to_compile:.0f} s',
    '',
    f'memory, GiB a chip of {memory.available / 2**30:.4g}',
  ]
  parts = ('parameters', 'optimizer', 'frozen', 'other', 'batch', 'temporaries', 'program')
  lines += [f'  {part:<12}{getattr(memory, part) / 2**30:>9.3f}' for part in parts if getattr(memory, part)]
  share = f'{memory.total / memory.available:.0%}'
  if not compiled.fits:
    over = (memory.total - memory.available) / 2**30
    return '\n'.join([*lines, f'  {"total":<12}{memory.total / 2**30:>9.3f}  {share}: does not fit, by {over:.3g} GiB'])
  lines.append(f'  {"total":<12}{memory.total / 2**30:>9.3f}  {share}')
  estimate = compiled.estimate
  peak, bandwidth = topology.chip.peak(compiled.dtype) / 1e12, topology.chip.bandwidth / 1e9
  lines += [
    '',
    "work a chip, and the time it takes at least (an estimate from the chip's peaks)",
    f'  arithmetic  {compiled.flops / 1e12:>9.4g} TFLOP {_ms(estimate.compute)}  at {peak:g} TFLOP/s',
    f'  memory      {compiled.bytes_moved / 1e9:>9.4g} GB    {_ms(estimate.memory)}  at {bandwidth:g} GB/s',
    f'  exchange    {_sum_of_bytes(compiled) / 1e9:>9.4g} GB    {_ms(estimate.overlapped)}  beside work',
    f'  {"":<27}{_ms(estimate.exposed)}  while work waits',
  ]
  lines += [f'    {line}' for line in _exchange_lines(compiled)]
  if compiled.loops:
    lines.append(f'  {compiled.loops} loops, whose bodies are counted once: more is done than stands here')
  if topology.slices > 1:
    lines.append(f'  {_between_slices(compiled)}')
  rate = compiled.batch_size / estimate.seconds
  lines += [
    '',
    f'a step takes {estimate.seconds * 1e3:.4g} ms or more, bound by {estimate.bound}: at most {rate:.4g} images/s, '
    f'{rate / topology.chips:.4g} a chip, {estimate.compute / estimate.seconds:.0%} of peak',
  ]
  if compiled.cycles:
    lines.append(_by_cycles(compiled.cycles, topology.chip.clock))
  if compiled.batch_size < TPU_ROWS * topology.chips and not topology.is_gpu:
    fuller = f'--config.batch_size={TPU_ROWS * topology.chips}'
    lines.append(f'under {TPU_ROWS} pictures a chip they are cut into strips; {fuller} may take little longer')
  return '\n'.join(lines)


def _by_cycles(cycles: int, clock: float) -> str:
  return (
    f"{cycles / clock * 1e3:.4g} ms by the compiler's own count of {cycles / 1e6:.4g} million cycles at "
    f'{clock / 1e9:g} GHz: operations one after another, loops in full, without exchanges'
  )


def _between_slices(compiled: 'Compiled') -> str:
  if compiled.topology.is_gpu:
    return 'exchanges between nodes are timed as if within one: the network is slower'
  count, size = compiled.from_other_slices
  return f'from other slices {size / 1e6:.4g} MB in {count} pieces, which no time stands for here'


def _ms(seconds: float) -> str:
  return f'{seconds * 1e3:>9.3f} ms'


def _sum_of_bytes(compiled: 'Compiled') -> int:
  return sum(each.bytes for each in compiled.exchanges)


def _exchange_lines(compiled: 'Compiled') -> list[str]:
  from jaxface.aot.hlo import by_kind

  return [
    f'{kind:<20}{row["count"]:>5}  {row["bytes"] / 1e6:>10.4g} MB  {row["overlapped"]} beside work'
    for kind, row in by_kind(compiled.exchanges).items()
  ]


def scaling_table(found: Sequence['Compiled']) -> str:
  """Weak scaling: what a chip does as chips grow in number, and the time of a step beside the first one's."""
  head = ('topology', 'chips', 'batch', 'GiB', 'TFLOP', 'GB moved', 'exchanges', 'MB', 'ms', 'images/s', 'efficiency')
  rows = [head]
  first = next((each for each in found if each.fits), None)
  for each in found:
    if not each.fits:
      rows.append((each.topology.name, str(each.topology.chips), str(each.batch_size), 'does not fit', *[''] * 7))
      continue
    seconds = each.estimate.seconds
    rows.append(
      (
        each.topology.name,
        str(each.topology.chips),
        str(each.batch_size),
        f'{each.memory.total / 2**30:.3f}',
        f'{each.flops / 1e12:.4g}',
        f'{each.bytes_moved / 1e9:.4g}',
        str(len(each.exchanges)),
        f'{_sum_of_bytes(each) / 1e6:.4g}',
        f'{seconds * 1e3:.4g}',
        f'{each.batch_size / seconds:.4g}',
        f'{first.estimate.seconds / seconds:.1%}',
      )
    )
  widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
  table = '\n'.join('  '.join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
  return f'weak scaling, of one chip, by estimate\n{table}'


def as_json(name: str, compiled: 'Compiled') -> dict[str, Any]:
  """One compiled step as JSON holds it."""
  from jaxface.aot.hlo import by_kind

  result = {
    'config': name,
    'step': compiled.step,
    'topology': compiled.topology.name,
    'slices': compiled.topology.slices,
    'chips': compiled.topology.chips,
    'device_kind': compiled.topology.devices[0].device_kind,
    'mesh': compiled.mesh,
    'batch_size': compiled.batch_size,
    'dtype': compiled.dtype,
    'seconds_to_compile': compiled.seconds_to_compile,
    'fits': compiled.fits,
    'memory_bytes': {**dataclasses.asdict(compiled.memory), 'total': compiled.memory.total},
  }
  if compiled.fits:
    estimate = compiled.estimate
    result |= {
      'flops': compiled.flops,
      'bytes_moved': compiled.bytes_moved,
      'exchanges': by_kind(compiled.exchanges),
      'from_other_slices': dict(zip(('count', 'bytes'), compiled.from_other_slices, strict=True)),
      'loops': compiled.loops,
      'compiler_cycles': compiled.cycles,
      'estimated_seconds': {**dataclasses.asdict(estimate), 'step': estimate.seconds},
      'bound': estimate.bound,
      'estimated_images_per_second': compiled.batch_size / estimate.seconds,
    }
  return result
