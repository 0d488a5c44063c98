"""What a run tells: JSON lines, TensorBoard, picture grids, a progress bar. Only process 0 of a run says anything."""

import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
import tensorboardX
import tqdm

from jaxface import figures
from jaxface.folders import append, folder, written_locally
from jaxface.workdir import write_atomically

METRICS_FILE = 'metrics.jsonl'


def read_metrics(workdir: Path) -> list[dict[str, float]]:
  """The lines of a run's metrics file, oldest first."""
  path = folder(workdir) / METRICS_FILE
  lines = path.read_text().splitlines() if path.is_file() else []
  if lines and not _whole(lines[-1]):  # A full disk or a crash has cut it off.
    lines.pop()
  return [json.loads(line) for line in lines]


def _outliving_its_reader() -> contextlib.AbstractContextManager[None]:
  """Around what a run says: a terminal that is closed, or a `tee` that Ctrl-C ended, must not end the run."""
  return contextlib.suppress(OSError)


def _whole(line: str) -> bool:
  try:
    json.loads(line)
  except ValueError:
    return False
  return True


class RunLog:
  """Writes a run's metrics and pictures into its folder and draws its progress bar.

  Lines and pictures after `first_step`, left by a run that was killed, are taken back: the run will say them again.
  """

  def __init__(self, workdir: Path, *, first_step: int, total_steps: int, images_per_step: int, quiet: bool = False):
    self.workdir = workdir
    self._images_per_step = images_per_step
    kept = [record for record in read_metrics(workdir) if record['step'] <= first_step]
    write_atomically(workdir / METRICS_FILE, ''.join(json.dumps(record) + '\n' for record in kept))
    self._board = tensorboardX.SummaryWriter(str(workdir / 'tensorboard'), purge_step=first_step + 1)
    self._bar = tqdm.tqdm(
      initial=first_step, total=total_steps, unit='step', dynamic_ncols=True, disable=quiet, desc=workdir.name
    )
    self._postfix: dict[str, str] = {}
    self._started: float | None = time.perf_counter()
    self._step_then = first_step

  def __enter__(self) -> 'RunLog':
    return self

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
  ) -> None:
    with _outliving_its_reader():
      self._bar.close()
    self._board.close()

  def say(self, text: str) -> None:
    """Prints a line above the progress bar."""
    with _outliving_its_reader():
      self._bar.write(text)

  def advance(self, step: int) -> None:
    """Moves the progress bar."""
    with _outliving_its_reader():
      self._bar.update(step - self._bar.n)

  def pause(self) -> None:
    """Ends a stretch of training whose speed is measured; call it before anything that is no training."""
    self._started = None

  def resume(self, step: int) -> None:
    """Begins a stretch of training whose speed is measured."""
    self._started, self._step_then = time.perf_counter(), step

  def speed(self, step: int) -> dict[str, float]:
    """Pictures a second since the stretch began, compilation, evaluation and saving left out; {} at its very start."""
    if self._started is None or step <= self._step_then:
      return {}
    rate = (step - self._step_then) * self._images_per_step / (time.perf_counter() - self._started)
    return {'train/images_per_second': rate}

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Writes one line of metrics; names read 'train/loss', 'validation/ssim'."""
    record = {'step': step, **{name: float(value) for name, value in values.items()}}
    append(self.workdir / METRICS_FILE, json.dumps(record) + '\n')
    for name, value in values.items():
      self._board.add_scalar(name, value, step)
    shown = {'train/loss': 'loss', 'train/images_per_second': 'images/s'}
    self._postfix |= {short: f'{values[name]:.4g}' for name, short in shown.items() if name in values}
    self._bar.set_postfix(self._postfix, refresh=False)

  def pictures(self, step: int, columns: Mapping[str, np.ndarray]) -> None:
    """Writes a grid, one row an example and one column a name, as PNG and into TensorBoard."""
    sheet = figures.titled_columns(columns)
    with written_locally(self.workdir / 'pictures' / f'step_{step:08d}.png') as file:
      figures.save_png(file, sheet)
    self._board.add_image('pictures', sheet, step, dataformats='HWC')


class SilentLog(RunLog):
  """The log of every other process: says nothing, writes nothing."""

  def __init__(self) -> None:
    pass

  def __exit__(self, *_: object) -> None:
    pass

  def say(self, text: str) -> None:
    """Says nothing."""

  def advance(self, step: int) -> None:
    """Moves nothing."""

  def pause(self) -> None:
    """Measures nothing."""

  def resume(self, step: int) -> None:
    """Measures nothing."""

  def speed(self, step: int) -> dict[str, float]:
    """Measures nothing."""
    return {}

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Writes nothing."""

  def pictures(self, step: int, columns: Mapping[str, np.ndarray]) -> None:
    """Writes nothing."""
