"""Which knob would make a step fit that does not: by arithmetic on what it holds, not by compiling again."""

from collections.abc import Iterator

from ml_collections import ConfigDict

from jaxface.aot.step import Compiled


def advice(config: ConfigDict, compiled: Compiled) -> list[str]:
  """A line for each knob of a step that does not fit: the least turn of it that would do, or how far it goes."""
  return list(_advice(config, compiled))


def _advice(config: ConfigDict, compiled: Compiled) -> Iterator[str]:
  memory = compiled.memory
  devices = compiled.mesh['data'] * compiled.mesh['fsdp']
  fsdp = compiled.mesh['fsdp']
  cut = memory.parameters + memory.optimizer + memory.other
  # What grows with the rows: activations and the batch.
  rows = memory.total - cut - memory.frozen

  def line(knob: str, needs: float) -> str:
    fits = 'fits' if needs <= memory.available else 'does not fit alone'
    return f'{knob}: about {_gib(needs)} of {_gib(memory.available)} GiB, {fits}'

  def least(knob: str, choices: list[int], needs: dict[int, float]) -> Iterator[str]:
    if choices:
      chosen = next((each for each in choices if needs[each] <= memory.available), choices[-1])
      yield line(f'{knob}={chosen}', needs[chosen])

  # Who shares a copy sits in one slice.
  in_slice = devices // compiled.topology.slices
  wider = [n for n in range(fsdp + 1, in_slice + 1) if in_slice % n == 0]
  yield from least('--config.parallel.fsdp', wider, {n: cut * fsdp / n + memory.frozen + rows for n in wider})
  training = compiled.step == 'train'
  pieces = devices * (config.accumulate_steps if training else 1)
  fewer = [n for n in range(compiled.batch_size - 1, 0, -1) if n % pieces == 0]
  of_rows = {n: cut + memory.frozen + rows * n / compiled.batch_size for n in fewer}
  yield from least('--config.batch_size', fewer, of_rows)
  if training:
    per_device = compiled.batch_size // pieces
    more = [n * config.accumulate_steps for n in range(2, per_device + 1) if per_device % n == 0]
    of_pieces = {n: cut + memory.parameters + memory.frozen + rows * config.accumulate_steps / n for n in more}
    yield from least('--config.accumulate_steps', more, of_pieces)
  if compiled.dtype == 'float32':
    yield line('--config.model.dtype=bfloat16', cut + memory.frozen + rows / 2)
  if training and config.model.get('remat') is False:
    yield '--config.model.remat=True: keeps what goes into a block and computes the rest again; compile to see'


def _gib(size: float) -> str:
  return f'{size / 2**30:.3g}'
