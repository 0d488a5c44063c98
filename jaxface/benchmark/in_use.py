"""How fast systems are in use, with random weights: reconstruction and samples, parsing, makeup transfer."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
from ml_collections import ConfigDict

from jaxface.augment import to_float, to_unit
from jaxface.benchmark.meter import Meter, Row, compile_program
from jaxface.benchmark.training import make_engine, random_batch
from jaxface.parallel import Engine
from jaxface.parse import parse
from jaxface.parsing import Parser
from jaxface.pictures import write_picture
from jaxface.state import TrainState, for_evaluation
from jaxface.tasks.task import Batch

# What is timed, in words -> the function, and what it is given after the state.
Uses = dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]


def use_rows(
  meter: Meter,
  config: ConfigDict,
  uses: Callable[[Engine, TrainState, Batch], Uses],
  devices: Sequence[jax.Device],
  rows: int,
) -> Iterator[Row]:
  """A row for each of the `uses` of a system, by batches of `rows` random pictures that lie on the devices."""
  engine = make_engine(config, devices)
  state = for_evaluation(engine.init())
  batch = engine.put(random_batch(config, engine, rows))
  for what, (function, arguments) in uses(engine, state, batch).items():
    program = compile_program(jax.jit(function), state, *arguments, devices=len(devices))
    yield meter.row(
      f'{config.task}, {config.model.dtype}: {what}',
      lambda run=program.run, given=arguments: run(state, *given),
      images=rows,
      program=program,
      dtype=config.model.dtype,
    )


def vae_reconstruct(engine: Engine, state: TrainState, batch: Batch) -> Uses:
  """Pictures through the VAE, as `jaxface reconstruct` does."""
  del state
  return {'reconstruct': (lambda state, image: engine.task.predict(state, to_float(image)), (batch['image'],))}


def vae_sample(engine: Engine, state: TrainState, batch: Batch) -> Uses:
  """Pictures of latents, as `jaxface sample` does."""
  del state
  z = jax.jit(engine.task.draw_noise, out_shardings=engine.rows)(jax.random.key(0), batch)
  return {'sample': (engine.task.decode, (z,))}


def autoencoder_reconstruct(engine: Engine, state: TrainState, batch: Batch) -> Uses:
  """The first stage there, back, and both."""
  model, signed = engine.task.model, lambda image: 2 * to_float(image) - 1

  def encode(state: TrainState, image: jax.Array) -> jax.Array:
    return model.apply({'params': state.params['generator']}, signed(image), method='encode')

  def decode(state: TrainState, latent: jax.Array) -> jax.Array:
    return to_unit(model.apply({'params': state.params['generator']}, latent, method='decode'))

  return {
    'encode': (encode, (batch['image'],)),
    'quantise and decode': (decode, (jax.jit(encode)(state, batch['image']),)),
    'encode, quantise, decode': (
      lambda state, image: engine.task.reconstruct(state, to_float(image))[0],
      (batch['image'],),
    ),
  }


def network_parse(engine: Engine, state: TrainState, batch: Batch) -> Uses:
  """The parser's network and the best class."""
  del state
  size = engine.task.image_size
  return {f'parse {size}x{size}, network alone': (engine.task.predict, (batch['image'],))}


def makeup_transfer(engine: Engine, state: TrainState, batch: Batch) -> Uses:
  """The networks alone, and from pictures and label maps."""
  task = engine.task

  def faces(batch: Batch) -> tuple[Any, Any]:
    return (
      task.faces(batch['image'], batch['label'], made_up=False),
      task.faces(batch['reference_image'], batch['reference_label'], made_up=True),
    )

  def transfer(state: TrainState, target: Any, reference: Any) -> jax.Array:
    return task.wear(state, target, task.code(state, reference))

  target, reference = jax.jit(faces)(batch)
  size = target.image.shape[1]
  return {
    f'transfer {size}x{size}: {what}': use
    for what, use in {
      'networks; the reference encoded before': (task.wear, (target, jax.jit(task.code)(state, reference))),
      'networks; the reference encoded, too': (transfer, (target, reference)),
      'pictures and label maps prepared, networks': (lambda state, batch: transfer(state, *faces(batch)), (batch,)),
    }.items()
  }


def parse_rows(meter: Meter, config: ConfigDict) -> Iterator[Row]:
  """The parser with all that is around its network, on all devices: pictures given and label maps back, and files."""
  engine = make_engine(config, jax.devices()[:1])
  state = engine.init()
  variables = {'params': state.params, 'batch_stats': state.model_state}
  size = config.model.image_size
  parser = Parser(engine.task.model, variables, image_size=size, label_order=config.model.label_order)
  count = max(16, 4 * parser.batch_size)
  # Smooth as photos are, so that files have a photo's size.
  coarse = np.random.default_rng(0).integers(0, 256, (count, size // 16, size // 16, 3), np.uint8)
  images = [cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC) for image in coarse]

  def row(what: str, call: Callable[[], Any]) -> Row:
    timed = f'{config.task}, {config.model.dtype}: parse {size}x{size}, {what}'
    return meter.row(timed, call, images=count, batch_size=parser.batch_size, devices=jax.local_device_count())

  yield row(
    'pictures to the devices, network, label maps back; no files',
    lambda: parser.parse_shrunk(images, [(size, size)] * count),
  )
  with tempfile.TemporaryDirectory() as folder:
    photos, out = Path(folder, 'photos'), Path(folder, 'parsed')
    for i, image in enumerate(images):
      write_picture(photos / f'{i}.jpg', image)
    yield row(
      'JPEGs read and decoded, label maps written as PNGs',
      lambda: parse(parser, [photos], out, quiet=True).parsed,
    )
