"""Checkpoints of a run, by Orbax: asynchronous, atomic, the last few and the best kept.

A checkpoint holds the state (weights, optimizer, moving statistics, step) and the position in the data, so that a run
that goes on computes what it would have computed. It restores onto any number of devices and by either engine.
"""

import contextlib
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from jaxface.errors import UserError
from jaxface.folders import folder, in_object_store
from jaxface.processes import anywhere
from jaxface.state import TrainState, for_evaluation
from jaxface.workdir import CHECKPOINT_FOLDER

log = logging.getLogger(__name__)

_BEST = 'best'


@contextlib.contextmanager
def _disk_errors_are_the_users(folder: Path) -> Iterator[None]:
  try:
    yield
  except Exception as error:  # Orbax and TensorStore wrap the operating system's error in several types.
    if 'No space left' in str(error) or 'ENOSPC' in str(error) or 'RESOURCE_EXHAUSTED' in str(error):
      raise UserError(f'the disk of {folder} is full; make room and say the same command again to go on') from error
    raise


class Checkpoints:
  """The checkpoints of one workdir. Use as a context manager: leaving it waits for what is being written."""

  def __init__(self, workdir: Path, *, keep_last: int = 2, keep_best: int = 1, read_only: bool = False):
    policies = ocp.training.preservation_policies
    kept = [policies.LatestN(max(keep_last, 1))]
    if keep_best:
      kept.append(
        policies.BestN(
          get_metric_fn=lambda metrics: metrics[_BEST],
          reverse=True,  # The lowest score is the best.
          n=keep_best,
          keep_checkpoints_without_metrics=False,
        )
      )
    workdir = folder(workdir)
    self.folder = (workdir if in_object_store(workdir) else workdir.absolute()) / CHECKPOINT_FOLDER
    if read_only and not self.folder.is_dir():  # Orbax would make it.
      raise UserError(f'{workdir} has no checkpoints; give the --workdir of a run that `jaxface train` has saved')
    self._orbax = ocp.training.Checkpointer(
      self.folder,
      save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
      preservation_policy=policies.AnyPreservationPolicy(kept),
      # What a killed run left half-written goes, but never while another process may be writing it.
      cleanup_tmp_directories=not read_only,
    )

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, *_: object) -> None:
    with _disk_errors_are_the_users(self.folder):
      self._orbax.close()

  @property
  def steps(self) -> list[int]:
    """Steps at which a whole checkpoint exists, ascending."""
    return [checkpoint.step for checkpoint in self._orbax.checkpoints]

  @property
  def best_step(self) -> int | None:
    """The step with the best validation metric, or None where none was measured."""
    scored = [c for c in self._orbax.checkpoints if _has_score(c)]
    return min(scored, key=lambda c: c.metrics[_BEST]).step if scored else None

  def save(
    self, step: int, state: TrainState, next_batch: int, fingerprint: str | None, score: float | None = None
  ) -> None:
    """Copies the state off the devices and writes it in the background.

    `fingerprint` names the data the run is bound to (None: any); the lowest `score` is the best. A step that is there
    already is only written again to give it its first score.
    """
    there = [checkpoint for checkpoint in self._orbax.checkpoints if checkpoint.step == step]
    if there and (score is None or _has_score(there[0])):
      return
    with _disk_errors_are_the_users(self.folder):
      self._orbax.save_checkpointables_async(
        step,
        {'state': state, 'data': {'next_batch': next_batch}},
        metrics=None if score is None else {_BEST: float(score)},
        custom_metadata=None if fingerprint is None else {'data': fingerprint},
        force=True,
        overwrite=bool(there),
      )

  def wait(self) -> None:
    """Blocks until the checkpoint being written is whole."""
    with _disk_errors_are_the_users(self.folder):
      self._orbax.wait()

  def restore_latest(self, abstract: TrainState, fingerprint: str) -> tuple[TrainState, int] | None:
    """The newest state that can be read, and its next batch; None where there is no checkpoint.

    A checkpoint that is damaged for any process is passed over by all, with a warning, once Orbax has given up waiting
    for that process (five minutes). Data other than the run began with raises UserError.
    """
    for step in reversed(self.steps):
      found, problem = _by_all(self._load_with_origin, step, abstract)
      if found is None:
        log.warning('checkpoint %s cannot be read (%s); trying the one before', self.folder / str(step), problem)
        continue
      known, loaded = found
      _check_data(known.get('data', fingerprint), fingerprint)
      self._forget_after(step)
      return loaded['state'], int(loaded['data']['next_batch'])
    if self.steps:
      raise UserError(f'no checkpoint in {self.folder} can be read; remove that folder to train from the start')
    return None

  def load_state(self, step: int, abstract: TrainState) -> TrainState:
    """The state of checkpoint `step`, restored into `abstract`."""
    loaded, problem = _by_all(self._orbax.load_checkpointables, step, {'state': abstract})
    if loaded is None:
      raise UserError(
        f'checkpoint {self.folder / str(step)} cannot be read ({problem}); '
        f'choose another of {self.steps} with --checkpoint'
      )
    return loaded['state']

  def _load_with_origin(self, step: int, abstract: TrainState) -> tuple[dict[str, Any], dict[str, Any]]:
    known = self._orbax.metadata(step).custom_metadata or {}
    return known, self._orbax.load_checkpointables(step, {'state': abstract, 'data': {'next_batch': 0}})

  def _forget_after(self, step: int) -> None:
    # A damaged newer checkpoint would otherwise stand in the way of saving that step again.
    for later in [other for other in self.steps if other > step]:
      self._orbax.delete(later)


def _by_all(read: Callable[..., Any], *arguments: Any) -> tuple[Any, str]:
  """What reading gives, None where it fails in any process, and then why."""
  problem = 'another process cannot read it'
  try:
    found = read(*arguments)
  except Exception as error:  # Whatever is wrong with the files.
    found, problem = None, _brief(error)
  return None if anywhere(found is None) else found, problem


def _has_score(checkpoint: Any) -> bool:
  return bool(checkpoint.metrics) and _BEST in checkpoint.metrics


def _check_data(known: str, now: str) -> None:
  # Older runs noted no digits of what their data was made of.
  alike = now if '#' in known else re.sub('#[0-9a-f]+', '', now)
  if known != alike:
    same_name = known.partition('#')[0] == now.partition('#')[0]
    changed = 'prepared otherwise since: ' if same_name else ''
    raise UserError(f'the run was trained on {known} and the data is now {changed}{now}; choose another --workdir')


def _brief(error: BaseException) -> str:
  # Orbax takes any error in reading for one in its choice of how to read.
  while error.__cause__ is not None:
    error = error.__cause__
  lines = str(error).strip().splitlines()
  return f'{type(error).__name__}: {lines[0][:200] if lines else ""}'


def restore_for_evaluation(workdir: Path, abstract: TrainState, which: str = 'best') -> tuple[TrainState, int]:
  """A state to use, not to train on, from a run's folder, and its step; see `restore_weights`."""
  state, step = restore_weights(workdir, abstract, which)
  return for_evaluation(state), step


def restore_weights(workdir: Path, abstract: TrainState, which: str = 'best') -> tuple[TrainState, int]:
  """A state without its optimizer's, from a run's folder, and its step.

  Args:
    workdir: folder of a `jaxface train` run; it may still be training.
    abstract: shapes, dtypes and shardings of the run's state.
    which: 'best' (by validation; the latest where nothing was validated), 'latest' or a step number.
  """
  # The optimizer's moments, twice as much again as the weights, stay on the disk.
  partial = abstract.replace(opt_state=jax.tree.map(lambda _: ocp.PLACEHOLDER, abstract.opt_state))
  with Checkpoints(workdir, read_only=True) as checkpoints:
    steps = checkpoints.steps
    if not steps:
      raise UserError(f'{workdir} has no whole checkpoint yet; let `jaxface train` write one')
    if which == 'best':
      step = checkpoints.best_step or steps[-1]
    elif which == 'latest':
      step = steps[-1]
    elif which.isdigit() and int(which) in steps:
      step = int(which)
    else:
      raise UserError(f'no checkpoint {which!r} in {workdir}; choose best, latest or one of {steps}')
    return checkpoints.load_state(step, partial), step
