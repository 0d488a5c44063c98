"""BeautyGAN (Li et al., ACM MM 2018): makeup transfer by matching the histograms of lips, eyes and skin.

  jaxface train --config experiments/beautygan.py:code --workdir runs/beautygan

Variants:
  code    the recipe of the public code
  psgan   the same without the neck in the skin and for 50 epochs, without PSGAN's own eye and identity terms
After a comma, flags:
  paired  learn from rendered pairs by their true results alone: no adversary, no histograms
  demo    48 pixels of rendered faces, a small network: an hour on a slow core
  smoke   32 pixels, ten steps: seconds, for tests

Training compares what pictures show by VGG-19 (torchvision's or the vgg_conv.pth of the public code, your download):

  jaxface convert vgg19 vgg19-dcbb9e9d.pth

--config.loss.perceptual=random compares by a small network never trained, which keeps a small run's faces apart; none
leaves the term out.
"""

import ml_collections

VARIANTS = ('code', 'psgan')
FLAGS = ('paired', 'demo', 'smoke')


def get_config(arg: str = 'code') -> ml_collections.ConfigDict:
  """The recipe of one variant; `arg` is 'variant' or 'variant,flag'."""
  variant, *flags = arg.split(',')
  if variant not in VARIANTS:
    raise ValueError(f'unknown variant {variant!r}; choose from {", ".join(VARIANTS)}')
  for flag in flags:
    if flag not in FLAGS:
      raise ValueError(f'unknown flag {flag!r}; choose from {", ".join(FLAGS)}')

  config = ml_collections.ConfigDict()
  config.task = 'beautygan'
  config.seed = 0
  config.batch_size = 1  # Over all devices.
  config.total_steps = 740_000  # 300 epochs of the 2,469 faces with makeup that are not held out.
  config.accumulate_steps = 1
  config.steps_per_dispatch = 1
  config.ema_decay = 0.0  # Of the generator.
  config.init_from = ''  # Workdir whose weights to start from.

  config.data = ml_collections.ConfigDict()
  config.data.name = 'makeup_transfer/mt'
  config.data.data_dir = ''  # '': $TFDS_DATA_DIR or ~/tensorflow_datasets.
  config.data.train_split = 'train'
  config.data.eval_split = 'test'
  config.data.resize = 'antialiased'  # As torchvision resizes.
  config.data.workers = -1  # Decoding processes; -1 chooses by the machine.
  config.data.resident = False  # Keep the whole split on the devices.

  config.model = ml_collections.ConfigDict()
  config.model.image_size = 256  # Of the data; the networks see squares of augment.crop_size.
  config.model.dim = 64
  config.model.num_blocks = 6
  config.model.discriminator_dim = 64
  config.model.discriminator_layers = 3
  config.model.dtype = 'float32'  # Of the computation; parameters are float32.

  config.loss = ml_collections.ConfigDict()
  config.loss.perceptual = 'vgg19'  # Or 'random', or 'none'.
  config.loss.neck = True  # Count the neck as skin.
  config.loss.paired = 0.0  # Factor of the distance to the true result, which only rendered pairs have.
  config.loss.weights = ml_collections.ConfigDict()
  config.loss.weights.adversarial = 1.0
  config.loss.weights.cycle = 5.0
  config.loss.weights.perceptual = 0.025
  config.loss.weights.identity = 2.5
  config.loss.weights.lips = 1.0
  config.loss.weights.skin = 0.1
  config.loss.weights.eyes = 1.0

  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.name = 'adam'
  config.optimizer.options = ml_collections.ConfigDict({'b1': 0.5, 'b2': 0.999})
  config.optimizer.learning_rate = 2e-4
  config.optimizer.warmup_steps = 0
  config.optimizer.decay = 'constant'
  config.optimizer.clip_each = 0.0
  config.optimizer.clip_global = 0.0
  config.optimizer.weight_decay = 0.0

  config.augment = ml_collections.ConfigDict()
  config.augment.crop_size = 256
  config.augment.random_crop = False
  config.augment.flip = False

  config.parallel = ml_collections.ConfigDict()
  config.parallel.mode = 'jit'  # 'jit' over a mesh, or 'pmap'.
  config.parallel.fsdp = 1  # Devices that share one copy of the parameters.

  config.log_steps = 100
  config.eval_steps = 10_000
  config.eval_batches = 0  # 0: the whole split.
  config.render_steps = 10_000
  config.checkpoint_steps = 2_000
  config.keep_last = 2
  config.keep_best = 0
  config.best_metric = ''  # Of validation, decides which checkpoint is the best. None: MT has none to choose by.
  config.best_is = 'lowest'  # Or 'highest'.

  if variant == 'psgan':
    config.loss.neck = False
    config.total_steps = 123_000
  if 'paired' in flags:
    config.data.name = 'synthetic_faces/makeup_aligned_256'
    config.data.eval_split = 'validation'
    config.augment.crop_size = 192  # Of a head little more than the face.
    config.augment.random_crop = True  # In photos faces lie elsewhere.
  if 'demo' in flags:
    config.data.name = 'synthetic_faces/makeup_aligned_64'
    config.data.eval_split = 'validation'
    config.model.image_size = 64
    config.augment.crop_size = 48  # Of a head little more than the face.
    config.model.dim = config.model.discriminator_dim = 16
    config.model.num_blocks = 3
    config.loss.perceptual = 'random'
    config.loss.weights.perceptual = 10.0
    config.ema_decay = 0.99
    config.batch_size = 2
    config.total_steps = 6000
    config.optimizer.learning_rate = 1e-3
    config.optimizer.decay = 'cosine'
    config.log_steps = 20
    config.eval_batches = 10
    config.eval_steps = config.render_steps = 1000
    config.checkpoint_steps = 250
    config.best_metric, config.keep_best = 'transfer/l1', 1
  if 'paired' in flags:
    for term in ('adversarial', 'cycle', 'perceptual', 'identity', 'lips', 'skin', 'eyes'):
      config.loss.weights[term] = 0.0
    config.loss.paired = 20.0
    config.loss.perceptual = 'none'
    config.best_metric, config.keep_best = 'pasted/l1', 1
    if 'demo' in flags:
      config.batch_size, config.total_steps = 8, 12_000
  if 'smoke' in flags:
    config.data.name = 'synthetic_faces/makeup_16'
    config.data.eval_split = 'validation'
    config.model.image_size = config.augment.crop_size = 32
    config.model.dim = config.model.discriminator_dim = 4
    config.model.num_blocks = config.model.discriminator_layers = 1
    config.loss.perceptual = 'none'
    config.batch_size = 8
    config.total_steps = 10
    config.log_steps = 1
    config.eval_steps = config.render_steps = 5
    config.checkpoint_steps = 5
  return config
