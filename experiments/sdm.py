"""SDM (Wang et al., 2022): faces after a label map, by diffusion of the pictures themselves.

  jaxface train --config experiments/sdm.py:published --workdir runs/sdm_first
  jaxface train --config experiments/sdm.py:guided --config.init_from=runs/sdm_first --workdir runs/sdm

Variants:
  published  the published network and the first part of its training
  guided     the second part, in which one row in five is given no label map, for guidance
After a comma, flags:
  demo   64 pixels, a network of 32 channels: an hour on a laptop
  smoke  16 pixels, ten steps: seconds, for tests
"""

import ml_collections

VARIANTS = ('published', 'guided')
FLAGS = ('demo', 'smoke')


def get_config(arg: str = 'published') -> ml_collections.ConfigDict:
  """The recipe of one variant; `arg` is 'variant' or 'variant,flag'."""
  variant, *flags = arg.split(',')
  if variant not in VARIANTS:
    raise ValueError(f'unknown variant {variant!r}; choose from {", ".join(VARIANTS)}')
  for flag in flags:
    if flag not in FLAGS:
      raise ValueError(f'unknown flag {flag!r}; choose from {", ".join(FLAGS)}')

  config = ml_collections.ConfigDict()
  config.task = 'sdm'
  config.seed = 0
  config.batch_size = 32  # Over all devices. Published: 4 on each of 8.
  config.total_steps = 200_000  # The publication gives no number.
  config.accumulate_steps = 1
  config.steps_per_dispatch = 1
  config.ema_decay = 0.9999
  config.ema_warmup = False  # Average over fewer updates at first.
  config.init_from = ''  # Workdir whose weights to start from.

  config.data = ml_collections.ConfigDict()
  config.data.name = 'celebamask_hq/aligned_256'
  config.data.data_dir = ''  # '': $TFDS_DATA_DIR or ~/tensorflow_datasets.
  config.data.train_split = 'train'
  config.data.eval_split = 'validation'
  config.data.resize = 'area'  # Published: halved by boxes, then bicubic.
  config.data.workers = -1  # Decoding processes; -1 chooses by the machine.
  config.data.resident = False  # Keep the whole split on the devices.

  config.model = ml_collections.ConfigDict()
  config.model.image_size = 256
  config.model.channels = 256
  config.model.multipliers = (1, 1, 2, 2, 4, 4)  # A level each, of half the size of the one before.
  config.model.num_blocks = 2
  config.model.attention_factors = (8, 16, 32)  # How many times smaller than the picture the levels with attention are.
  config.model.head_channels = 64
  config.model.dtype = 'float32'  # Of the computation; parameters are float32.
  config.model.spade_hidden = 128
  config.model.remat = False

  config.schedule = ml_collections.ConfigDict()
  config.schedule.name = 'linear'
  config.schedule.start = 1e-4
  config.schedule.end = 0.02

  config.loss = ml_collections.ConfigDict()
  config.loss.weighting = 'simple'  # Or 'min_snr', or 'elbo'.
  config.loss.gamma = 5.0  # Of min_snr.
  config.loss.drop_rate = 0.2 if variant == 'guided' else 0.0  # Rows given no label map.

  config.sampling = ml_collections.ConfigDict()  # In evaluation.
  config.sampling.name = 'ddpm'  # Or 'ddim', or 'dpm_solver'.
  config.sampling.steps = 0  # All.
  config.sampling.eta = 0.0
  config.sampling.guidance = 1.5 if variant == 'guided' else 1.0

  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.name = 'adam'
  config.optimizer.options = ml_collections.ConfigDict()
  config.optimizer.learning_rate = 2e-5
  config.optimizer.warmup_steps = 0
  config.optimizer.decay = 'constant'
  config.optimizer.clip_each = 0.0
  config.optimizer.clip_global = 0.0
  config.optimizer.weight_decay = 0.0

  config.augment = ml_collections.ConfigDict()
  config.augment.least = 0.8  # Side of the random crop, as a share of the picture's, at least.
  config.augment.flip = True

  config.parallel = ml_collections.ConfigDict()
  config.parallel.mode = 'jit'  # 'jit' over a mesh, or 'pmap'.
  config.parallel.fsdp = 1  # Devices that share one copy of the parameters.

  config.log_steps = 100
  config.eval_steps = 5_000
  config.eval_batches = 0  # 0: the whole split.
  config.render_steps = 5_000
  config.checkpoint_steps = 1_000
  config.keep_last = 2
  config.keep_best = 3
  config.best_metric = 'loss'  # Of validation; decides which checkpoint is the best.
  config.best_is = 'lowest'  # Or 'highest'.

  if 'demo' in flags:
    config.data.name = 'synthetic_faces/faces_aligned_64'
    config.model.image_size = 64
    config.model.channels = 32
    config.model.multipliers = (1, 1, 2, 2)
    config.model.num_blocks = 1
    config.model.attention_factors = (8,)
    config.model.spade_hidden = 16
    config.loss.drop_rate = 0.1
    config.augment.least = 1.0
    config.augment.flip = False
    config.batch_size = 8
    config.total_steps = 3000
    config.ema_decay = 0.99
    config.ema_warmup = True
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.decay = 'cosine'
    config.sampling.steps = 50
    config.log_steps = 20
    config.eval_batches = 10
    config.eval_steps = config.render_steps = 1000
    config.checkpoint_steps = 250
  if 'smoke' in flags:
    config.data.name = 'synthetic_faces/faces_16'
    config.model.image_size = 16
    config.model.channels = 32
    config.model.multipliers = (1,)
    config.model.num_blocks = 1
    config.model.attention_factors = ()  # The middle has it in any case.
    config.model.spade_hidden = 8
    config.model.head_channels = 32
    config.batch_size = 8
    config.total_steps = 10
    config.sampling.steps = 2
    config.log_steps = 1
    config.eval_steps = config.render_steps = 5
    config.checkpoint_steps = 5
  return config
