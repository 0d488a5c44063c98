"""Face-mask VAE (Toledo & Antonelo, ENIAC 2021), ten variants.

  jaxface train --config experiments/vae.py:mask_ssim_l2 --workdir runs/mask_ssim_l2

Variants: {mask,nomask}_{l1,l2,ssim,ssim_l1,ssim_l2}. The paper's best is mask_ssim_l2. After a comma, flags:
  demo   48 pixels, a quarter of the width, Adam: minutes on a laptop
  smoke  16 pixels, ten steps: seconds, for tests
"""

import ml_collections

LOSSES = ('l1', 'l2', 'ssim', 'ssim_l1', 'ssim_l2')
VARIANTS = tuple(f'{mask}_{loss}' for mask in ('mask', 'nomask') for loss in LOSSES)
FLAGS = ('demo', 'smoke')


def get_config(arg: str = 'mask_ssim_l2') -> ml_collections.ConfigDict:
  """The published recipe of one variant; `arg` is 'variant' or 'variant,flag'."""
  variant, *flags = arg.split(',')
  if variant not in VARIANTS:
    raise ValueError(f'unknown variant {variant!r}; choose from {", ".join(VARIANTS)}')
  for flag in flags:
    if flag not in FLAGS:
      raise ValueError(f'unknown flag {flag!r}; choose from {", ".join(FLAGS)}')
  mask, _, loss = variant.partition('_')

  config = ml_collections.ConfigDict()
  config.task = 'vae'
  config.seed = 0
  config.batch_size = 32  # Over all devices.
  config.total_steps = 400_000  # 100 epochs of 4,000 steps.
  config.accumulate_steps = 1
  config.steps_per_dispatch = 1
  config.ema_decay = 0.0
  config.init_from = ''  # Workdir whose weights to start from.

  config.data = ml_collections.ConfigDict()
  config.data.name = 'synthetic_faces/faces_144'
  config.data.data_dir = ''  # '': $TFDS_DATA_DIR or ~/tensorflow_datasets.
  config.data.train_split = 'train'
  config.data.eval_split = 'validation'
  config.data.resize = 'bilinear'  # As published: no antialiasing.
  config.data.workers = -1  # Decoding processes; -1 chooses by the machine.
  config.data.resident = False  # Keep the whole split on the devices.

  config.model = ml_collections.ConfigDict()
  config.model.image_size = 144
  config.model.width_multiplier = 1.0
  config.model.latent_dim = 512
  config.model.masks = mask == 'mask'
  config.model.sampling = 'gaussian'  # 'reference' is what the public code does.
  config.model.dtype = 'float32'  # Of the computation; parameters are float32.
  config.model.remat = False

  config.loss = ml_collections.ConfigDict()
  config.loss.name = loss
  config.loss.kl_weight = 1e-3
  config.loss.filter_size = 9
  config.loss.fused_ssim = False  # One kernel for SSIM and its gradient, on TPU.

  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.name = 'keras_adam'
  config.optimizer.options = ml_collections.ConfigDict()
  config.optimizer.learning_rate = 1e-4
  config.optimizer.warmup_steps = 0
  config.optimizer.decay = 'constant'
  config.optimizer.clip_each = 1e-3  # Keras's clipnorm: every variable by its own norm.
  config.optimizer.clip_global = 0.0
  config.optimizer.weight_decay = 0.0

  config.augment = ml_collections.ConfigDict()
  config.augment.flip = False
  config.augment.crop_pixels = 0
  config.augment.brightness = 0.0
  config.augment.contrast = 0.0
  config.augment.saturation = 0.0

  config.parallel = ml_collections.ConfigDict()
  config.parallel.mode = 'jit'  # 'jit' over a mesh, or 'pmap'.
  config.parallel.fsdp = 1  # Devices that share one copy of the parameters.

  config.log_steps = 100
  config.eval_steps = 4000
  config.eval_batches = 0  # 0: the whole validation split.
  config.render_steps = 4000
  config.checkpoint_steps = 1000
  config.keep_last = 2
  config.keep_best = 1
  config.best_metric = 'loss'  # Of validation; decides which checkpoint is the best.
  config.best_is = 'lowest'  # Or 'highest'.

  if 'demo' in flags:
    config.data.name = 'synthetic_faces/faces_aligned_48'
    config.model.image_size = 48
    config.model.width_multiplier = 0.25
    config.model.latent_dim = 128
    config.total_steps = 4000
    config.optimizer.name = 'adam'
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 50
    config.optimizer.decay = 'cosine'
    config.optimizer.clip_each = 0.0
    config.log_steps = 20
    config.eval_steps = 1000
    config.render_steps = 1000
    config.checkpoint_steps = 300
  if 'smoke' in flags:
    config.data.name = 'synthetic_faces/faces_16'
    config.model.image_size = 16
    config.model.width_multiplier = 0.05
    config.model.latent_dim = 8
    config.batch_size = 8
    config.total_steps = 10
    config.log_steps = 1
    config.eval_steps = 5
    config.render_steps = 5
    config.checkpoint_steps = 5
  return config
