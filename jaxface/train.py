"""The one train loop: any task, any number of devices and processes."""

import collections
import contextlib
import dataclasses
import itertools
import logging
import math
import signal
import types
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from jaxface import figures, input_pipeline
from jaxface import workdir as workdirs
from jaxface.checkpoint import Checkpoints, restore_weights
from jaxface.errors import UserError, check_at_least
from jaxface.evaluate import evaluate_state
from jaxface.folders import folder, written_locally
from jaxface.optimizers import ENDING_DECAYS
from jaxface.parallel import Batch, Engine, check_batch_size
from jaxface.processes import anywhere, check_same, giving_up_together, process_and_count, speaks
from jaxface.runlog import RunLog, SilentLog, read_metrics
from jaxface.runs import engine_for, open_split
from jaxface.state import TrainState, for_evaluation, parameter_table, size_in_bytes

# Two dispatches in flight keep the devices busy; more would only queue up batches in their memory.
_IN_FLIGHT = 2
_RENDERED_ROWS = 8
# Factor that makes the best score the lowest.
_BEST_IS = {'lowest': 1, 'highest': -1}


class NonFiniteError(RuntimeError):
  """A term of the loss, or the gradient, stopped being a number."""


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How a call of `train` ended."""

  step: int
  finished: bool  # False: stopped by a signal, to be gone on with.
  metrics: dict[str, float]  # The last validation metrics, or the last training metrics where nothing was validated.


def train(config: ConfigDict, workdir: Path, *, quiet: bool = False) -> Outcome:
  """Trains the run that `config` describes in `workdir`, from its newest checkpoint if there is one.

  Raises UserError for a configuration, dataset or workdir that cannot work, before anything is computed, and
  NonFiniteError at the first loss that is no number; the last good checkpoint stays.
  """
  workdir = folder(workdir)
  check_same('configuration', workdirs.shared(config))
  engine = engine_for(config)
  _check_numbers(config, engine)
  with contextlib.ExitStack() as stack:
    with giving_up_together():
      train_set = open_split(config, engine, config.data.train_split)
      _check_best(config, engine, train_set)
      if speaks():
        stack.enter_context(workdirs.locked(workdir))
        _describe_run(config, workdir, engine)
    check_same('dataset', {config.data.train_split: train_set.fingerprint})
    with giving_up_together():
      workdirs.check_shared(workdir)
    checkpoints = stack.enter_context(Checkpoints(workdir, keep_last=config.keep_last, keep_best=config.keep_best))
    stop = stack.enter_context(StopRequest())
    state, first_step, origin = _first_state(config, engine, checkpoints, train_set)
    log = stack.enter_context(_make_log(config, workdir, first_step, quiet))
    log.say(origin)
    validation_set, examples = _open_validation(config, engine, train_set, log)
    missed = validation_set is not None and _validation_was_missed(config, workdir, first_step)
    if first_step >= config.total_steps and not missed:
      log.say(f'nothing to do: trained to step {first_step}; raise --config.total_steps to go on')
      return Outcome(first_step, True, _last_validation(workdir))
    try:
      loop = _Loop(config, engine, train_set, validation_set, examples, checkpoints, stop, log)
      outcome = loop.run(state, first_step, missed)
    except NonFiniteError as error:
      kept = f'step {checkpoints.steps[-1]} is kept' if checkpoints.steps else 'there was none yet'
      raise NonFiniteError(
        f'{error}; last good checkpoint: {kept}; lower optimizer.learning_rate or look at the data of that step'
      ) from None
  if speaks():
    with written_locally(workdir / 'losses.png') as file:
      figures.plot_losses(file, read_metrics(workdir))
  return outcome


@dataclasses.dataclass(frozen=True)
class _Loop:
  """Trains from one step to the end, or to a request to stop; `examples` are what it draws now and then."""

  config: ConfigDict
  engine: Engine
  train_set: input_pipeline.Dataset
  validation_set: input_pipeline.Dataset | None
  examples: Batch
  checkpoints: Checkpoints
  stop: 'StopRequest'
  log: RunLog

  def run(self, state: TrainState, first_step: int, missed: bool) -> Outcome:
    """From `first_step` on, whose validation comes first where it was `missed`."""
    config, engine, log = self.config, self.engine, self.log
    metrics: dict[str, float] = {}
    if missed:
      metrics, stop = self._look(state, first_step, _Due(evaluate=True, render=True, save=True))
      if stop:
        return self._stopped(first_step, metrics)
      if first_step >= config.total_steps:
        return Outcome(first_step, True, metrics)
    stream = _open_stream(config, engine, self.train_set, first_step)  # Batch t is what step t + 1 learns from.
    pending = _Pending(engine)
    step, compiled_for = first_step, 0
    for steps, batches in _ahead(stream, engine, config.steps_per_dispatch, config.total_steps - first_step):
      first = steps != compiled_for
      if first:
        log.pause()  # It compiles.
      before, step, compiled_for = step, step + steps, steps
      state, device_metrics = engine.train_step(state, batches, engine.dataset)
      pending.add(step, steps, device_metrics)
      log.advance(step)
      stop = self.stop.agreed()
      due = _what_is_due(config, before, step, first=first, stop=stop)
      if due.log:
        metrics = pending.read()
        log.scalars(step, {f'train/{name}': value for name, value in metrics.items()} | log.speed(step))
      if due.pause:
        log.pause()
        found, stop = self._look(state, step, due)
        metrics = found or metrics
        log.resume(step)
      if stop:
        return self._stopped(step, metrics)
    return Outcome(step, True, metrics)

  def _stopped(self, step: int, metrics: dict[str, float]) -> Outcome:
    self.checkpoints.wait()
    self.log.say(f'asked to stop: saved at step {step}; say the same command again to go on')
    return Outcome(step, False, metrics)

  def _look(self, state: TrainState, step: int, due: '_Due') -> tuple[dict[str, float], bool]:
    """Validates, saves and draws as is due; returns validation's metrics, and whether to stop: then it only saves."""
    config, engine = self.config, self.engine
    metrics, score = None, None
    if due.evaluate and self.validation_set is not None:
      metrics = evaluate_state(
        engine,
        state,
        self.validation_set,
        batch_size=config.batch_size,
        limit=config.eval_batches,
        stop=self.stop.agreed,
      )
    if metrics is not None:
      self.log.scalars(step, {f'validation/{name}': value for name, value in metrics.items()})
      # A class, say, may be in no picture that was looked at; and nothing is better or worse than NaN.
      found = metrics.get(config.best_metric, math.nan)
      score = found * _BEST_IS[config.best_is] if math.isfinite(found) else None
    stop = self.stop.agreed()
    # Before it is drawn, which may take longer than a scheduler waits.
    if due.save or stop:
      self.checkpoints.save(step, engine.to_saved(state), step, self.train_set.fingerprint, score)
    if due.render and not stop:
      self.log.pictures(step, engine.render(for_evaluation(state), self.examples))
    return metrics or {}, stop


@dataclasses.dataclass(frozen=True)
class _Due:
  """What there is to do after a dispatch, beside training on."""

  log: bool = False
  evaluate: bool = False
  render: bool = False
  save: bool = False
  pause: bool = False


def _what_is_due(config: ConfigDict, before: int, step: int, *, first: bool, stop: bool) -> _Due:
  last = step >= config.total_steps

  def crossed(every: int) -> bool:
    return every > 0 and step // every > before // every

  evaluate = not stop and (last or crossed(config.eval_steps))
  render = not stop and (last or crossed(config.render_steps))
  # What was validated is saved, so that the best checkpoint is the best that was seen.
  save = stop or evaluate or crossed(config.checkpoint_steps)
  # Metrics are read before a checkpoint is written: a state whose loss is no number must not replace a good one.
  log = first or save or crossed(config.log_steps)
  return _Due(log, evaluate, render, save, pause=first or evaluate or render or save)


def _validation_was_missed(config: ConfigDict, workdir: Path, step: int) -> bool:
  """Whether validation was due at the step that a run goes on from, where it had been stopped."""
  before = max(step - config.steps_per_dispatch, 0)
  if step == 0 or not _what_is_due(config, before, step, first=False, stop=False).evaluate:
    return False
  return anywhere(speaks() and not _validated(workdir, step))


def _validated(workdir: Path, step: int) -> bool:
  records = [record for record in read_metrics(workdir) if record['step'] == step]
  return any(name.startswith('validation/') for record in records for name in record)


# Preemption, Ctrl-C, and a terminal that is closed.
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopRequest:
  """Notes `_STOP_SIGNALS`, so that the loop can save and leave; a second one ends at once.

  Those that the process was started to ignore (`nohup`) stay ignored.

  With several processes JAX's own preemption notice serves instead: it lets all of them stop after the same step.
  """

  def __init__(self) -> None:
    self._asked = False
    self._times_asked = 0
    self._before: dict[int, object] = {}

  def __enter__(self) -> 'StopRequest':
    if jax.process_count() == 1:
      for number in _STOP_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
          self._before[number] = signal.signal(number, self._note)
    return self

  def _note(self, number: int, frame: types.FrameType | None) -> None:
    self._asked = True
    signal.signal(number, self._before[number])

  def __exit__(self, *_: object) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def agreed(self) -> bool:
    """Whether to stop now; several processes must ask equally often, and all are answered alike."""
    if jax.process_count() > 1 and not self._asked:
      # JAX lets them meet at the number behind the highest that any has said, so none may be left out.
      self._times_asked += 1
      self._asked = multihost_utils.reached_preemption_sync_point(self._times_asked)
    return self._asked


def _check_numbers(config: ConfigDict, engine: Engine) -> None:
  check_at_least(1, config, 'total_steps', 'steps_per_dispatch', 'accumulate_steps', 'log_steps', 'batch_size')
  check_at_least(0, config, 'seed', 'eval_batches', 'keep_best')
  if not 0 <= config.get('ema_decay', 0.0) < 1:
    raise UserError(f'ema_decay={config.ema_decay}; give 0 for no averaged copy, or less than 1, such as 0.9999')
  check_batch_size(config.batch_size, engine.device_count * config.accumulate_steps)


def _describe_run(config: ConfigDict, workdir: Path, engine: Engine) -> None:
  state = engine.abstract_saved
  before = workdirs.open_run(workdir, config)
  if before is not None and before.total_steps != config.total_steps and config.optimizer.decay in ENDING_DECAYS:
    logging.getLogger(__name__).warning(
      'total_steps was %d and is %d: from here the learning rate decays (%s) as if it had been so from the start',
      before.total_steps,
      config.total_steps,
      config.optimizer.decay,
    )
  workdirs.check_disk(workdir, config.keep_last + config.keep_best, size_in_bytes(state))
  (workdir / 'parameters.txt').write_text(parameter_table(state.params) + '\n')


def _make_log(config: ConfigDict, workdir: Path, first_step: int, quiet: bool) -> RunLog | SilentLog:
  if not speaks():
    return SilentLog()
  return RunLog(
    workdir,
    first_step=first_step,
    total_steps=config.total_steps,
    images_per_step=config.batch_size,
    quiet=quiet,
  )


def _first_state(
  config: ConfigDict, engine: Engine, checkpoints: Checkpoints, dataset: input_pipeline.Dataset
) -> tuple[TrainState, int, str]:
  """The state to start from, its step, and where it is from: 1. this workdir, 2. weights of `init_from`, 3. fresh."""
  restored = checkpoints.restore_latest(engine.abstract_saved, dataset.fingerprint)
  if restored is not None:
    saved, next_batch = restored
    return engine.from_saved(saved), next_batch, f'going on from step {next_batch}'
  state = engine.init()
  if not config.init_from:
    return state, 0, 'starting from random weights'
  weights, step = _weights_of(config, engine)
  saved = engine.to_saved(state)
  # A copy: a step gives the memory of both away.
  ema = saved.ema and (weights.ema or jax.tree.map(jnp.copy, {name: weights.params[name] for name in saved.ema}))
  saved = saved.replace(params=weights.params, model_state=weights.model_state, ema=ema)
  return engine.from_saved(saved), 0, f'starting from the weights of {config.init_from}, step {step}'


def _weights_of(config: ConfigDict, engine: Engine) -> tuple[TrainState, int]:
  """The weights of the run `init_from`, which may have had another optimizer or no averaged copy, and their step.

  Its task is made anew: a first stage must lie where that run's configuration says.
  """
  with giving_up_together():
    source = workdirs.read_config(Path(config.init_from))
    if source.task != config.task:
      raise UserError(f'init_from={config.init_from} is a run of task {source.task!r}; this one is of {config.task!r}')
  source.parallel = config.parallel
  abstract = engine_for(source, training=False).abstract_saved
  theirs, ours = _shapes(abstract), _shapes(engine.abstract_saved)
  for name in {**theirs, **ours}:
    there, here = theirs.get(name), ours.get(name)
    if there != here:
      raise UserError(f'init_from={config.init_from} is of another network: {name} is {there} there, {here} here')
  return restore_weights(Path(config.init_from), abstract)


def _shapes(state: TrainState) -> dict[str, tuple[int, ...]]:
  """Of all weights, by name."""
  leaves = jax.tree_util.tree_leaves_with_path({'params': state.params, 'model_state': state.model_state})
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf.shape for path, leaf in leaves}


def _open_validation(
  config: ConfigDict, engine: Engine, train_set: input_pipeline.Dataset, log: RunLog
) -> tuple[input_pipeline.Dataset | None, Batch]:
  """The validation data, None where the dataset has no such split, and a few examples to look at."""
  try:
    dataset = open_split(config, engine, config.data.eval_split)
  except UserError as error:
    log.say(f'training without validation: {error}')
    dataset = None
  check_same('dataset', {config.data.eval_split: None if dataset is None else dataset.fingerprint})
  rows = -(-_RENDERED_ROWS // engine.device_count) * engine.device_count
  examples = next(
    input_pipeline.eval_batches(dataset or train_set, batch_size=rows, process=process_and_count(), limit=1)
  )
  return dataset, engine.put(examples)


def _check_best(config: ConfigDict, engine: Engine, train_set: input_pipeline.Dataset) -> None:
  """Finds out what validation will report, without computing it: the first one may be hours away."""
  if config.best_is not in _BEST_IS:
    raise UserError(f'best_is={config.best_is!r}; choose from {", ".join(_BEST_IS)}')
  examples = next(
    input_pipeline.eval_batches(train_set, batch_size=config.batch_size, process=process_and_count(), limit=1)
  )
  measured = engine.abstract_metrics(examples)
  names = engine.task.summary({name: np.ones(shape.shape) for name, shape in measured.items()})
  if config.best_metric and config.best_metric not in names:
    raise UserError(f'best_metric={config.best_metric!r} is not measured; choose from {", ".join(names)}')


def _open_stream(
  config: ConfigDict, engine: Engine, dataset: input_pipeline.Dataset, next_batch: int
) -> input_pipeline.TrainBatches | input_pipeline.ResidentBatches:
  position = {
    'batch_size': config.batch_size,
    'seed': config.seed,
    'next_batch': next_batch,
    'process': process_and_count(),
  }
  if config.data.resident:
    engine.put_dataset(input_pipeline.load_whole(dataset))
    return input_pipeline.ResidentBatches(dataset, **position)
  return input_pipeline.TrainBatches(dataset, workers=config.data.workers, **position)


def _ahead(
  stream: Iterator[input_pipeline.NumpyBatch], engine: Engine, steps_per_dispatch: int, steps: int
) -> Iterator[tuple[int, Batch]]:
  """Batches on the devices, put there one dispatch ahead of the one that is computed, and how many each is.

  The last may be fewer: a run that was stopped, and goes on, may have any number of steps left.
  """
  queue: collections.deque[tuple[int, Batch]] = collections.deque()
  for done in range(0, steps, steps_per_dispatch):
    count = min(steps_per_dispatch, steps - done)
    queue.append((count, engine.put_stacked(list(itertools.islice(stream, count)))))
    if len(queue) == _IN_FLIGHT:
      yield queue.popleft()
  yield from queue


class _Pending:
  """Metrics still on the devices, read in one go when they are wanted."""

  def __init__(self, engine: Engine):
    self._engine = engine
    self._waiting: list[tuple[int, int, dict[str, jax.Array]]] = []

  def add(self, last_step: int, steps: int, metrics: dict[str, jax.Array]) -> None:
    """Queues what a dispatch of so many steps, up to `last_step`, returned, and waits for the one before the last."""
    self._waiting.append((last_step, steps, metrics))
    if len(self._waiting) > _IN_FLIGHT:
      jax.block_until_ready(self._waiting[-1 - _IN_FLIGHT][2])

  def read(self) -> dict[str, float]:
    """Means over the steps since the last call; raises NonFiniteError by the first step and term that is no number."""
    found: dict[str, list[float]] = {}
    for last_step, steps, metrics in self._waiting:
      host = self._engine.metrics_on_host(metrics)
      for i in range(steps):
        now = {name: float(values[i]) for name, values in host.items()}
        broken = [name for name, value in now.items() if not math.isfinite(value)]
        if broken:
          # The total and the gradient break with any term: name the term.
          name = next((name for name in broken if name not in ('loss', 'grad_norm')), broken[0])
          raise NonFiniteError(f'{name} became {now[name]} at step {last_step - steps + 1 + i}')
        for name, value in now.items():
          found.setdefault(name, []).append(value)
    self._waiting.clear()
    return {name: math.fsum(values) / len(values) for name, values in found.items()}


def _last_validation(workdir: Path) -> dict[str, float]:
  prefix = 'validation/'
  found: dict[str, float] = {}
  for record in read_metrics(workdir):
    found = {name.removeprefix(prefix): v for name, v in record.items() if name.startswith(prefix)} or found
  return found
