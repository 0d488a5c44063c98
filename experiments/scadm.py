"""SCA-DM (Ergasti et al., 2024): faces after a label map and the styles of their parts, by latent diffusion.

  jaxface train --config experiments/scadm.py:published --config.first_stage.workdir=runs/vqgan --workdir runs/scadm

The first stage is a run of experiments/vqgan.py, or made by `jaxface convert vqgan`. Variants:
  published  the published network and recipe; beyond it, one row in ten is given nothing at all, so that guidance has
             something trained to lead away from, and the averaged copy holds the style encoder, too
  public     neither of these two, as the public code has it
After a comma, flags:
  demo   64 pixels, latents of 16, a network of 64 channels: an hour on a laptop
  smoke  16 pixels, a first stage never trained, ten steps: seconds, for tests
"""

import ml_collections

VARIANTS = ('published', 'public')
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
  config.task = 'scadm'
  config.seed = 0
  config.batch_size = 48  # Over all devices. Published: 8 by six accumulated.
  config.total_steps = 137_000  # 235 epochs.
  config.accumulate_steps = 1
  config.steps_per_dispatch = 1
  # Published: 0.9999 at each of the six batches of 8. Reached slowly: min of this and (1 + n) / (10 + n), n-th update.
  config.ema_decay = 0.9994
  config.average_style = variant != 'public'  # The averaged copy holds the style encoder, too.
  config.init_from = ''  # Workdir whose weights to start from.

  config.data = ml_collections.ConfigDict()
  config.data.name = 'celebamask_hq/aligned_256'
  config.data.data_dir = ''  # '': $TFDS_DATA_DIR or ~/tensorflow_datasets.
  config.data.train_split = 'train'
  config.data.eval_split = 'validation'
  config.data.resize = 'area'  # Published: bicubic, antialiased.
  config.data.workers = -1  # Decoding processes; -1 chooses by the machine.
  config.data.resident = False  # Keep the whole split on the devices, and its latents; else a step encodes its rows.

  config.first_stage = ml_collections.ConfigDict()
  config.first_stage.workdir = ''  # Of a trained autoencoder; 'random': never trained, to measure speed.
  config.first_stage.checkpoint = 'best'
  config.first_stage.scale = 1.0  # Of the latents, for a standard deviation near 1.
  config.first_stage.random = ml_collections.ConfigDict()  # What 'random' looks like: published.
  config.first_stage.random.width = 128
  config.first_stage.random.multipliers = (1, 2, 4)
  config.first_stage.random.num_blocks = 2
  config.first_stage.random.codebook_size = 8192

  config.model = ml_collections.ConfigDict()
  config.model.image_size = 256
  config.model.channels = 224
  config.model.multipliers = (1, 2, 3, 4)  # A level each, of half the size of the one before.
  config.model.num_blocks = 2
  config.model.attention_factors = (2, 4, 8)  # How many times smaller than the latent the levels with attention are.
  config.model.head_channels = 32
  config.model.style_width = 4  # Features of a class at full size; fewer than three would not tell hues apart.
  config.model.style_dim = 256  # Numbers of a class's style at each of its scales.
  config.model.style_downsamples = 6
  config.model.dtype = 'float32'  # Of the computation; parameters are float32.
  config.model.spade_hidden = 128
  config.model.remat = False

  config.schedule = ml_collections.ConfigDict()
  config.schedule.name = 'scaled_linear'
  config.schedule.start = 0.0015
  config.schedule.end = 0.0195

  config.loss = ml_collections.ConfigDict()
  config.loss.prediction = 'eps'  # Or 'v', or 'x0'.
  config.loss.weighting = 'simple'  # Or 'min_snr', or 'elbo'.
  config.loss.gamma = 5.0  # Of min_snr.
  config.loss.distance = 'l2'  # Or 'l1'.
  config.loss.discard_rate = 0.5  # Rows whose style is an empty picture's.
  config.loss.drop_rate = 0.1 if variant == 'published' else 0.0  # Rows given neither style nor label map.
  config.loss.attention = 'bce'  # Or 'l2'.
  config.loss.attention_weight = 0.0  # 0.01 in the authors' variant without masks.

  config.sampling = ml_collections.ConfigDict()  # In evaluation.
  config.sampling.name = 'ddim'  # Or 'ddpm', or 'dpm_solver'.
  config.sampling.steps = 200  # 0: all.
  config.sampling.eta = 0.0
  config.sampling.guidance = 1.0

  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.name = 'adam'
  config.optimizer.options = ml_collections.ConfigDict()
  config.optimizer.learning_rate = 9.6e-5  # 2e-6 times the batch size.
  config.optimizer.warmup_steps = 0
  config.optimizer.decay = 'constant'
  config.optimizer.clip_each = 0.0
  config.optimizer.clip_global = 0.0
  config.optimizer.weight_decay = 0.01
  config.optimizer.weight_decay_everywhere = True  # PyTorch's AdamW decays biases and norms, too.

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
    config.first_stage.scale = 2.0  # Of the demo of experiments/vqgan.py.
    config.model.image_size = 64
    config.model.channels = 64
    config.model.multipliers = (1, 2)
    config.model.num_blocks = 1
    config.model.attention_factors = (2,)
    config.model.spade_hidden = 32
    config.model.style_dim = 64
    config.model.style_downsamples = 2  # Its one scale keeps classes apart, and is fast.
    config.loss.prediction = 'v'  # Counts in full where noise hides all but the style; eps and min_snr hardly do.
    config.loss.discard_rate = 0.2  # Styles are learnt sooner so.
    config.batch_size = 8
    config.total_steps = 6500
    config.ema_decay = 0.99
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
    config.first_stage.workdir = 'random'
    config.first_stage.random.width = 32
    config.first_stage.random.multipliers = (1, 1)
    config.first_stage.random.num_blocks = 1
    config.first_stage.random.codebook_size = 16
    config.model.image_size = 16
    config.model.channels = 32
    config.model.multipliers = (1,)
    config.model.num_blocks = 1
    config.model.attention_factors = ()  # The middle has it in any case.
    config.model.spade_hidden = 8
    config.model.style_width = 2
    config.model.style_dim = 4
    config.model.style_downsamples = 2
    config.batch_size = 8
    config.total_steps = 10
    config.sampling.steps = 2
    config.log_steps = 1
    config.eval_steps = config.render_steps = 5
    config.checkpoint_steps = 5
  return config
