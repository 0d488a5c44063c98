"""Face parser (BiSeNet as zllrunning/face-parsing.PyTorch has it).

  jaxface train --config experiments/bisenet.py:celebamask_hq --workdir runs/parser

Variants:
  celebamask_hq  the published recipe, on CelebAMask-HQ at 512 pixels
  synthetic      the same network and recipe for the rendered faces at 128 pixels, shorter
After a comma, flags:
  demo   128 pixels (parts of less than eight hardly show in the features), a quarter of the width, Adam, 2,000 steps of
         eight pictures: minutes on a laptop, twenty on two busy cores
  smoke  32 pixels, ten steps: seconds, for tests

The published run begins with ImageNet's weights (torchvision's file, your download):

  jaxface convert resnet18 resnet18-f37072fd.pth --workdir runs/imagenet
  jaxface train --config experiments/bisenet.py:celebamask_hq --config.init_from=runs/imagenet --workdir runs/parser

CelebAMask-HQ has no validation split unless it is prepared with one: jaxface prepare celebamask_hq --validation 500.
"""

import ml_collections

VARIANTS = ('celebamask_hq', 'synthetic')
FLAGS = ('demo', 'smoke')


def get_config(arg: str = 'celebamask_hq') -> ml_collections.ConfigDict:
  """The recipe of one variant; `arg` is 'variant' or 'variant,flag'."""
  variant, *flags = arg.split(',')
  if variant not in VARIANTS:
    raise ValueError(f'unknown variant {variant!r}; choose from {", ".join(VARIANTS)}')
  for flag in flags:
    if flag not in FLAGS:
      raise ValueError(f'unknown flag {flag!r}; choose from {", ".join(FLAGS)}')

  config = ml_collections.ConfigDict()
  config.task = 'parsing'
  config.seed = 0
  config.batch_size = 16  # Over all devices; published is 16 on each of several.
  config.total_steps = 80_000
  config.accumulate_steps = 1
  config.steps_per_dispatch = 1
  config.ema_decay = 0.0
  config.init_from = ''  # Workdir whose weights to start from.

  config.data = ml_collections.ConfigDict()
  config.data.name = 'celebamask_hq/aligned_512'
  config.data.data_dir = ''  # '': $TFDS_DATA_DIR or ~/tensorflow_datasets.
  config.data.train_split = 'train'
  config.data.eval_split = 'validation'
  config.data.resize = 'antialiased'  # As Pillow resizes.
  config.data.workers = -1  # Decoding processes; -1 chooses by the machine.
  config.data.resident = False  # Keep the whole split on the devices.

  config.model = ml_collections.ConfigDict()
  config.model.image_size = 512  # Of the data and of evaluation; training sees crops of it.
  config.model.width_multiplier = 1.0
  config.model.label_order = 'celebamask_hq'  # Of the network's classes; the public weights have 'bisenet'.
  config.model.dtype = 'float32'  # Of the computation; parameters are float32.

  config.loss = ml_collections.ConfigDict()
  config.loss.threshold = 0.7  # Pixels of a lower probability are hard.
  config.loss.least_share = 1 / 16  # Of the batch's pixels, those that count at least.

  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.name = 'momentum'  # SGD with a momentum of 0.9.
  config.optimizer.options = ml_collections.ConfigDict()
  config.optimizer.learning_rate = 1e-2
  config.optimizer.warmup_steps = 1000
  config.optimizer.warmup_from = 1e-5
  config.optimizer.decay = 'poly'
  config.optimizer.clip_each = 0.0
  config.optimizer.clip_global = 0.0
  config.optimizer.weight_decay = 0.0
  config.optimizer.l2 = 5e-4
  # Factors of the learning rate: what is new learns faster than ImageNet's features.
  config.optimizer.rates = ml_collections.ConfigDict({'fusion': 10.0, 'head': 10.0, 'aux8': 10.0, 'aux16': 10.0})

  config.augment = ml_collections.ConfigDict()
  config.augment.crop_size = 448
  config.augment.scales = (0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
  config.augment.flip = True
  config.augment.brightness = 0.5
  config.augment.contrast = 0.5
  config.augment.saturation = 0.5

  config.parallel = ml_collections.ConfigDict()
  config.parallel.mode = 'jit'  # 'jit' over a mesh, or 'pmap'.
  config.parallel.fsdp = 1  # Devices that share one copy of the parameters.

  config.log_steps = 100
  config.eval_steps = 5000
  config.eval_batches = 0  # 0: the whole validation split.
  config.render_steps = 5000
  config.checkpoint_steps = 1000
  config.keep_last = 2
  config.keep_best = 1
  config.best_metric = 'miou'  # Of validation; decides which checkpoint is the best.
  config.best_is = 'highest'

  if variant == 'synthetic':
    config.data.name = 'synthetic_faces/faces_128'
    config.model.image_size = 128
    config.augment.crop_size = 112
    config.total_steps = 20_000
    config.optimizer.warmup_steps = 500
    config.eval_steps = config.render_steps = 2000
  if 'demo' in flags:
    config.data.name = 'synthetic_faces/faces_128'
    config.model.image_size = config.augment.crop_size = 128
    config.model.width_multiplier = 0.25
    config.augment.scales = (1.0, 1.25, 1.5)
    config.batch_size = 8
    config.augment.brightness = config.augment.contrast = config.augment.saturation = 0.3
    config.total_steps = 2000
    config.optimizer.name = 'adam'
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.l2 = 0.0
    config.optimizer.rates = ml_collections.ConfigDict()
    config.log_steps = 20
    config.eval_steps = config.render_steps = 500
    config.checkpoint_steps = 250
  if 'smoke' in flags:
    config.data.name = 'synthetic_faces/faces_16'
    config.model.image_size = 32
    config.model.width_multiplier = 1 / 16
    config.augment.crop_size = 32
    config.batch_size = 8
    config.total_steps = 10
    config.optimizer.warmup_steps = 2
    config.log_steps = 1
    config.eval_steps = config.render_steps = 5
    config.checkpoint_steps = 5
  return config
