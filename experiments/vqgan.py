"""VQ-f4, the first stage of latent diffusion (Esser et al. 2021; Rombach et al. 2022).

  jaxface train --config experiments/vqgan.py:published --workdir runs/vqgan

Variants:
  published  latent diffusion's recipe, with the quantiser's beta where the paper has it
  legacy     beta where the public code has it by default: on the codebook's term instead of the commitment's
After a comma, flags:
  demo   64 pixels, a quarter of the width, a codebook of 512, no networks of your download: minutes on a laptop
  smoke  16 pixels, ten steps: seconds, for tests

Training compares pictures by LPIPS, too, with VGG-16 (your download):

  jaxface convert lpips-vgg vgg16-397923af.pth lpips-0.1.4-py3-none-any.whl

--config.loss.perceptual=random compares by a small network never trained; none leaves the term out.
"""

import ml_collections

VARIANTS = {'published': 'true', 'legacy': 'legacy'}
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
  config.task = 'autoencoder'
  config.seed = 0
  config.batch_size = 8  # Over all devices.
  config.total_steps = 533_066
  config.accumulate_steps = 1
  config.steps_per_dispatch = 1
  config.ema_decay = 0.0  # Of the autoencoder.
  config.init_from = ''  # Workdir whose weights to start from.

  config.data = ml_collections.ConfigDict()
  config.data.name = 'celebamask_hq/aligned_256'
  config.data.data_dir = ''  # '': $TFDS_DATA_DIR or ~/tensorflow_datasets.
  config.data.train_split = 'train'
  config.data.eval_split = 'validation'
  config.data.resize = 'area'  # As SCA-DM and SDM read what it encodes.
  config.data.workers = -1  # Decoding processes; -1 chooses by the machine.
  config.data.resident = False  # Keep the whole split on the devices.

  config.model = ml_collections.ConfigDict()
  config.model.image_size = 256
  config.model.width = 128
  config.model.multipliers = (1, 2, 4)  # A level each, of half the size of the one before.
  config.model.num_blocks = 2
  config.model.latent_channels = 3
  config.model.codebook_size = 8192
  config.model.codebook_spread = 0.0  # Entries start uniform within it; 0: 1 / codebook_size, as published.
  config.model.discriminator_dim = 64
  config.model.discriminator_layers = 3
  config.model.dtype = 'float32'  # Of the computation; parameters are float32.
  config.model.remat = False

  config.loss = ml_collections.ConfigDict()
  config.loss.perceptual = 'lpips-vgg'  # Or 'random', or 'none'.
  config.loss.perceptual_weight = 1.0
  config.loss.adversarial = 0.75  # Beside the adaptive weight; 0: no discriminator.
  config.loss.adversarial_start = 0  # Step.
  config.loss.codebook_weight = 1.0
  config.loss.beta = 0.25
  config.loss.placement = VARIANTS[variant]

  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.name = 'adam'
  config.optimizer.options = ml_collections.ConfigDict({'b1': 0.5, 'b2': 0.9})
  config.optimizer.learning_rate = 3.6e-5  # 4.5e-6 times the batch size.
  config.optimizer.warmup_steps = 0
  config.optimizer.decay = 'constant'
  config.optimizer.clip_each = 0.0
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
  config.eval_steps = 10_000
  config.eval_batches = 0  # 0: the whole split.
  config.render_steps = 10_000
  config.checkpoint_steps = 2_000
  config.keep_last = 2
  config.keep_best = 1
  config.best_metric = 'reconstruction/l1'  # Of validation; decides which checkpoint is the best.
  config.best_is = 'lowest'  # Or 'highest'.

  if 'demo' in flags:
    config.data.name = 'synthetic_faces/faces_aligned_64'
    config.model.image_size = 64
    config.model.width = 32
    config.model.multipliers = (1, 1, 2)
    config.model.num_blocks = 1
    config.model.codebook_size = 512
    config.model.codebook_spread = 0.5  # In 2,000 steps the published codebook does not unfold.
    config.model.discriminator_dim = 16
    config.loss.perceptual = 'none'
    config.loss.adversarial = 0.0  # A discriminator would take a third of the time.
    config.total_steps = 2000
    config.optimizer.options = ml_collections.ConfigDict({'b1': 0.9, 'b2': 0.99})
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 50
    config.optimizer.decay = 'cosine'
    config.ema_decay = 0.99
    config.log_steps = 20
    config.eval_batches = 10
    config.eval_steps = config.render_steps = 500
    config.checkpoint_steps = 250
  if 'smoke' in flags:
    config.data.name = 'synthetic_faces/faces_16'
    config.model.image_size = 16
    config.model.width = 32
    config.model.multipliers = (1, 1)
    config.model.num_blocks = 1
    config.model.codebook_size = 32
    config.model.codebook_spread = 0.5
    config.model.discriminator_dim = 4
    config.model.discriminator_layers = 2
    config.loss.perceptual = 'none'
    config.total_steps = 10
    config.log_steps = 1
    config.eval_steps = config.render_steps = 5
    config.checkpoint_steps = 5
  return config
