"""`jaxface <command>`: the command line. Every command's work is a function elsewhere; here are names and options."""

import argparse
import errno
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxface.cpu_environment import restart_for_cpu_programs
from jaxface.errors import UserError

if TYPE_CHECKING:
  from ml_collections import ConfigDict

# Modules are imported inside the commands: `jaxface --help` should not wait for JAX.


def load_config(file_and_variant: str, overrides: Sequence[str]) -> 'ConfigDict':
  """Reads `experiments/vae.py:variant` and applies `--config.key=value`, by ml_collections' own flag parser."""
  from absl import flags
  from ml_collections import ConfigDict, config_flags

  path = Path(file_and_variant.partition(':')[0])
  if not path.is_file():
    known = ', '.join(sorted(str(p) for p in Path('experiments').glob('*.py'))) or 'none here'
    raise UserError(f'no configuration file {path}; experiments here: {known}')
  values = flags.FlagValues()
  words = ['jaxface', f'--config={file_and_variant}', *overrides]
  config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=words)
  try:
    rest = values(words)
  except (flags.Error, LookupError, AttributeError, ValueError, TypeError) as error:
    unknown = _unknown_key(load_config(file_and_variant, ()), overrides) if overrides else None
    raise UserError(f'{file_and_variant}: {unknown or _one_line(error)}') from error
  if not isinstance(values.config, ConfigDict):
    raise UserError(f'{path}: get_config() returned {type(values.config).__name__}; it must return a ConfigDict')
  if len(rest) > 1:
    raise UserError(f'unexpected argument {rest[1]!r}; change a key of the configuration by --config.key=value')
  return values.config


def _unknown_key(config: 'ConfigDict', overrides: Sequence[str]) -> str | None:
  for override in overrides:
    node, *path = override.removeprefix('--').partition('=')[0].split('.')
    found = config
    for key in path:
      keys = sorted(found) if hasattr(found, 'keys') else []
      if key not in keys:
        return f'unknown key {key!r} in {override}; {node} has {", ".join(keys) or "no keys"}'
      node, found = f'{node}.{key}', found[key]
  return None


def _one_line(error: BaseException) -> str:
  # What goes wrong inside a configuration file reaches us as text: a whole traceback, its last line the reason.
  reason = str(error.args[0] if error.args else error).strip().splitlines()[-1]
  return reason.removeprefix('ValueError: ')


def _train(args: argparse.Namespace) -> int:
  from jaxface.folders import folder
  from jaxface.processes import speaks, start_processes

  start_processes(args.coordinator, args.num_processes, args.process_id)

  from jaxface.train import train
  from jaxface.workdir import CONFIG_FILE, read_config

  args.workdir = folder(args.workdir)
  if args.config:
    config = load_config(args.config, args.overrides)
  elif (args.workdir / CONFIG_FILE).is_file():
    config = read_config(args.workdir)
    if args.overrides:
      raise UserError(f'{args.overrides[0]} needs --config FILE:VARIANT, too')
  else:
    raise UserError(f'{args.workdir} holds no run to go on with; give --config experiments/vae.py:mask_ssim_l2')
  if args.data_dir is not None:
    config.data.data_dir = str(args.data_dir)
  outcome = train(config, args.workdir, quiet=args.quiet)
  if outcome.finished and not args.quiet and speaks():
    print(f'trained to step {outcome.step}; curves, pictures and checkpoints are in {args.workdir}')
  return 0 if outcome.finished else args.stopped_status


def _evaluate(args: argparse.Namespace) -> None:
  from jaxface.processes import start_processes

  start_processes(args.coordinator, args.num_processes, args.process_id)

  from jaxface.evaluate import evaluate_runs

  evaluate_runs(
    args.workdir,
    split=args.split,
    checkpoint=args.checkpoint,
    data=args.data,
    data_dir=args.data_dir,
    out=args.out,
    batch_size=args.batch_size,
    metrics=args.metrics.split(',') if args.metrics else (),
    draws=args.draws,
    allow_few=args.allow_few,
    weights_dir=args.weights_dir,
    parser=args.parser,
  )


def _reconstruct(args: argparse.Namespace) -> None:
  from jaxface.vae_pictures import reconstruct

  reconstruct(args.workdir, args.images, args.out, checkpoint=args.checkpoint)


def _sample(args: argparse.Namespace) -> None:
  from jaxface.vae_pictures import sample

  sample(args.workdir, args.out, count=args.count, seed=args.seed, prior=args.prior, checkpoint=args.checkpoint)


def _interpolate(args: argparse.Namespace) -> None:
  from jaxface.vae_pictures import interpolate

  interpolate(args.workdir, args.images, args.out, steps=args.steps, checkpoint=args.checkpoint)


def _ablation(args: argparse.Namespace) -> None:
  from jaxface.ablation import ablation

  variants = None if args.variants is None else args.variants.split(',')
  make_config = lambda variant: load_config(f'{args.config}:{variant}{args.flags}', args.overrides)
  ablation(make_config, args.workdir, variants=variants, data_dir=args.data_dir, split=args.split)


def _benchmark(args: argparse.Namespace) -> int:
  from jaxface.benchmark.command import benchmark

  config = load_config(args.config, args.overrides)
  if args.data_dir is not None:
    config.data.data_dir = str(args.data_dir)
  fine = benchmark(
    config,
    only=args.only.split(',') if args.only else None,
    out=args.out,
    seconds=args.seconds,
    profile=args.profile,
    against=args.compare,
    slow_down=args.slow_down,
  )
  return 0 if fine else 1


def _convert(args: argparse.Namespace) -> None:
  from jaxface.convert import command

  if args.system not in command.WORKDIRS and (args.config or args.overrides):
    raise UserError(f'{args.system} becomes no run that a configuration would be of; leave out --config')
  experiment = args.config or command.default_experiment(args.system)
  command.convert(
    args.system,
    args.files[0],
    args.workdir,
    make_config=lambda variant: load_config(f'{experiment}:{variant}', args.overrides),
    image_size=args.image_size,
    key=args.key,
    more=args.files[1:],
    make_first_stage=lambda variant: load_config(f'{command.default_experiment("vqgan")}:{variant}', []),
  )


def _add_workdir(parser: argparse.ArgumentParser, several: bool = False) -> None:
  parser.add_argument(
    '--workdir', type=Path, required=True, nargs='+' if several else None, help='folder of a `jaxface train` run'
  )
  parser.add_argument('--checkpoint', default='best', help="'best' (by validation), 'latest' or a step; default best")


def _add_data_dir(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    '--data-dir', type=Path, help='where prepared datasets lie; default $TFDS_DATA_DIR or ~/tensorflow_datasets'
  )


def _add_processes(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    '--coordinator', help="HOST:PORT of process 0, for a run of several processes; 'auto' asks the cluster"
  )
  parser.add_argument('--num-processes', type=int, help='how many there are, with --coordinator HOST:PORT')
  parser.add_argument('--process-id', type=int, help='which of them this is, from 0')


def make_parser() -> argparse.ArgumentParser:
  """All commands and their options."""
  parser = argparse.ArgumentParser(prog='jaxface', description=__doc__.partition('\n')[0])
  parser.add_argument('--version', action='store_true', help='print versions and devices, and leave')
  commands = parser.add_subparsers(metavar='COMMAND')

  def command(name: str, run: Callable[[argparse.Namespace], int | None], text: str) -> argparse.ArgumentParser:
    sub = commands.add_parser(name, help=text, description=text)
    sub.set_defaults(run=run)
    return sub

  from jaxface import makeup, parse, prepare, score, synthesize
  from jaxface.aot import command as aot

  for module in (prepare, parse, score, makeup, synthesize):
    module.register(commands)
  aot.register(commands, load_config)

  sub = command('train', _train, 'train a system, or go on with a run')
  sub.set_defaults(takes_overrides=True)
  sub.add_argument(
    '--config', help='FILE:VARIANT, such as experiments/vae.py:mask_ssim_l2; --config.key=value changes a key'
  )
  sub.add_argument('--workdir', type=Path, required=True, help='folder of the run; an existing one is gone on with')
  _add_data_dir(sub)
  sub.add_argument('--quiet', action='store_true', help='no progress bar')
  sub.add_argument(
    '--stopped-status', type=int, default=0, help='exit status of a run that was asked to stop and has saved; default 0'
  )
  _add_processes(sub)

  sub = command(
    'evaluate', _evaluate, 'measure one or several runs on a split and compare them in a table and a figure'
  )
  _add_workdir(sub, several=True)
  sub.add_argument('--split', default='test', help='of the dataset; default test')
  sub.add_argument('--data', help="another dataset than the run's own, such as face_folder/mine")
  _add_data_dir(sub)
  sub.add_argument('--batch-size', type=int, help="default: the run's own")
  sub.add_argument('--out', type=Path, help='folder for results.json and comparison.png; default WORKDIR/evaluation')
  sub.add_argument(
    '--metrics',
    help='to add, comma-separated: lpips-alex, lpips-vgg, lpips-squeeze, fid, kid, diversity-alex, l1, rmse, psnr, '
    'ssim, ms_ssim, vif, seconds; of makeup also identity, of pictures after label maps also miou',
  )
  sub.add_argument('--parser', type=Path, metavar='WORKDIR', help='face parser that miou finds label maps with')
  sub.add_argument(
    '--draws', type=int, default=0, help='makeup: give every target so many references, drawn at random (paper: 10)'
  )
  sub.add_argument('--allow-few', action='store_true', help='FID of few pictures, knowing that it means little')
  sub.add_argument('--weights-dir', type=Path, help='where `jaxface convert` has put the networks of --metrics')
  _add_processes(sub)

  sub = command('reconstruct', _reconstruct, 'reconstruct pictures or folders of them')
  _add_workdir(sub)
  sub.add_argument('--images', type=Path, nargs='+', required=True, help='pictures or folders')
  sub.add_argument('--out', type=Path, required=True, help='a .png or .jpg for one grid, or a folder')

  sub = command('sample', _sample, 'draw new faces')
  _add_workdir(sub)
  sub.add_argument('--count', type=int, default=64, help='number of faces; default 64')
  sub.add_argument('--seed', type=int, default=0, help='another one draws other faces; default 0')
  sub.add_argument(
    '--prior',
    choices=('normal', 'fitted'),
    default='fitted',
    help="'normal': N(0, 1), as the theory has it; 'fitted': a Gaussian fitted to the encoded training pictures",
  )
  sub.add_argument('--out', type=Path, required=True, help='a .png or .jpg')

  sub = command('interpolate', _interpolate, 'walk from face to face through the latent space')
  _add_workdir(sub)
  sub.add_argument('--images', type=Path, nargs='+', required=True, help='two or more pictures, or folders')
  sub.add_argument('--steps', type=int, default=8, help='pictures from one face to the next, both included')
  sub.add_argument('--out', type=Path, required=True, help='a .png or .jpg')

  sub = command(
    'ablation', _ablation, 'train and evaluate the ten VAE variants; print the table beside the published one'
  )
  sub.set_defaults(takes_overrides=True)
  sub.add_argument('--config', default='experiments/vae.py', help='FILE without variant')
  sub.add_argument('--flags', default='', help="flags for every variant, such as ',demo'")
  sub.add_argument('--variants', help='comma-separated; default all ten')
  sub.add_argument('--workdir', type=Path, required=True, help='one folder a variant is made in it; run again to go on')
  _add_data_dir(sub)
  sub.add_argument('--split', default='test', help='of the dataset; default test')

  sub = command('benchmark', _benchmark, 'measure throughput: steps, evaluation, loader, a system in use')
  sub.set_defaults(takes_overrides=True)
  sub.add_argument('--config', default='experiments/vae.py:mask_ssim_l2', help='FILE:VARIANT')
  sub.add_argument('--only', help='comma-separated parts; default all')
  sub.add_argument('--seconds', type=float, default=10.0, help='time to measure each row for')
  _add_data_dir(sub)
  sub.add_argument('--profile', type=Path, metavar='DIR', help='write a trace of some calls of every row, for XProf')
  sub.add_argument('--compare', type=Path, metavar='FILE', help='an earlier --out; exits with 1 where a row is slower')
  sub.add_argument('--slow-down', type=float, default=0.1, help='share of its rate that a row may lose; default 0.1')
  sub.add_argument('--out', type=Path, help='JSON file')

  sub = command('convert', _convert, 'turn public weights into what the other commands use')
  sub.add_argument(
    'system',
    help='vae, bisenet, resnet18, ipmnet, beautygan, vqgan, scadm, sdm; for losses: resnet50_face, vgg19, lpips-vgg; '
    'for metrics: lpips-alex, lpips-vgg, lpips-squeeze, inception, resnet50_face',
  )
  sub.add_argument(
    'files', type=Path, nargs='+', metavar='FILE', help='.h5, .pth, .pt, .ckpt, .pkl, .safetensors or .npz'
  )
  sub.set_defaults(takes_overrides=True)
  sub.add_argument(
    '--config', help="FILE without variant: dataset, loss and optimizer to go on with; default the system's"
  )
  sub.add_argument('--image-size', type=int, help='picture size of the network; weights do not say it')
  sub.add_argument('--key', help='entry of a PyTorch file to take, where it has several')
  sub.add_argument('--workdir', type=Path, help='folder to make; networks of metrics need none')
  return parser


def _print_version() -> None:
  import json

  from jaxface.workdir import environment

  print(json.dumps(environment(), indent=2))


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command; returns its exit status: 0, 1 for a run that failed, 2 for wrong input."""
  if argv is None:  # The process is ours.
    restart_for_cpu_programs()
    _hush_abandoned_reads()
  logging.basicConfig(level=logging.WARNING, format='jaxface: %(levelname)s: %(message)s')
  logging.getLogger('absl').setLevel(logging.ERROR)
  # Third parties' deprecations are not the user's business.
  warnings.filterwarnings('ignore', category=DeprecationWarning)
  parser = make_parser()
  args, rest = parser.parse_known_args(argv)
  if args.version:
    _print_version()
    return 0
  if not hasattr(args, 'run'):
    parser.print_help()
    return 2
  if rest and not (getattr(args, 'takes_overrides', False) and all(word.startswith('--config.') for word in rest)):
    parser.error(f'unrecognized arguments: {" ".join(rest)}')
  args.overrides = rest
  try:
    status = args.run(args) or 0
  except (Exception, KeyboardInterrupt) as error:
    status = _leave(_told(error))
  return _all_said(status)


def _told(error: BaseException) -> int:
  """The exit status of what went wrong, told in one line where it is the user's; raises again what is not."""
  if isinstance(error, UserError):
    line, status = f'error: {error}', 2
  elif isinstance(error, BrokenPipeError):  # Whoever read our words has enough, as `| head` has.
    return 128 + signal.SIGPIPE
  elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
    line, status = f'error: the disk is full ({error.filename}); make room and say the same again', 2
  elif isinstance(error, KeyboardInterrupt):
    line, status = 'interrupted', 130
  elif _is_non_finite(error):
    line, status = f'error: {error}', 1
  elif _in_company():  # Python would tell it only after it has waited for the others.
    traceback.print_exception(error)
    return 1
  else:
    raise error
  print(f'jaxface: {line}', file=sys.stderr)
  return status


def _hush_abandoned_reads() -> None:
  """Of a damaged checkpoint Orbax raises the first error and abandons its other reads, which complain on their own."""
  logging.getLogger('asyncio').setLevel(logging.CRITICAL)
  others = sys.unraisablehook
  sys.unraisablehook = lambda told: None if str(told.exc_value) == 'Event loop is closed' else others(told)


def _is_non_finite(error: BaseException) -> bool:
  if not isinstance(error, RuntimeError):
    return False
  from jaxface.train import NonFiniteError

  return isinstance(error, NonFiniteError)


def _in_company() -> bool:
  """Whether this is one of several processes."""
  return 'jax' in sys.modules and sys.modules['jax'].distributed.is_initialized()


def _leave(status: int) -> int:
  if not _in_company():
    return status
  from jaxface.processes import leave

  return leave(status)


def _all_said(status: int) -> int:
  """`status`, once all words are out; those that nobody reads any more are dropped, for Python would complain."""
  for stream in (sys.stdout, sys.stderr):
    try:
      stream.flush()
    except BrokenPipeError:
      os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
  return status


if __name__ == '__main__':
  sys.exit(main())
