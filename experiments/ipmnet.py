"""IPM-Net (Huang et al., IJCAI 2020): real-world makeup transfer that keeps identity and background.

  jaxface train --config experiments/ipmnet.py:code --workdir runs/ipmnet

Variants:
  code   the recipe of the public code, but for its doubled optimizer step and its face network that is never loaded
  paper  the paper's: batches of three, half the learning rate, random crops, the log GAN of its equation 8
After a comma, flags:
  paired  learn from rendered pairs by their true results alone: no adversary, no cycle
  demo    48 pixels of rendered faces, a small network without the face network: an hour on a slow core
  smoke   32 pixels, ten steps: seconds, for tests

Training compares identity by a face network, VGGFace2's ResNet-50 (your download):

  jaxface convert resnet50_face resnet50_ft_weight.pkl

--config.loss.perceptual=random compares by a network never trained, as the public code in fact does; none leaves the
term out.
"""

import ml_collections

VARIANTS = ('code', 'paper')
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
  config.task = 'ipmnet'
  config.seed = 0
  config.batch_size = 1  # Over all devices.
  config.total_steps = 1_000_000
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
  config.model.image_size = 321  # Of the data; the networks see squares of augment.crop_size.
  config.model.dim = 64
  config.model.mlp_dim = 256
  config.model.style_dim = 128
  config.model.num_downsamples = 2
  config.model.num_blocks = 4
  config.model.passes_through = False  # Begin with a last convolution that changes nothing; the public code draws it.
  config.model.discriminator_dim = 64
  config.model.discriminator_layers = 4
  config.model.discriminator_scales = 3
  config.model.dtype = 'float32'  # Of the computation; parameters are float32.
  config.model.remat = False

  config.texture = ml_collections.ConfigDict()
  config.texture.recipe = 'stored'  # That of the textures the authors give; 'published' is their script's.
  config.texture.low = 0.8  # A texture's weight is drawn from U(low, high) in training, and their mean in use.
  config.texture.high = 1.2

  config.loss = ml_collections.ConfigDict()
  config.loss.gan = 'lsgan'  # Or 'log'.
  config.loss.penalty = 0.01  # Of the discriminators' gradient.
  config.loss.perceptual = 'vggface2'  # Or 'random', or 'none'.
  config.loss.paired = 0.0  # Factor of the distance to the true result, which only rendered pairs have.
  config.loss.change = 0.0  # Factor of the same of what makeup changes: the picture less that at level 0.
  config.loss.colours = 0.0  # Factor of the distance of a style's first nine numbers to its face's colours.
  config.loss.weights = ml_collections.ConfigDict()
  config.loss.weights.adversarial = 1.0
  config.loss.weights.reconstruction = 20.0
  config.loss.weights.style = 1.0
  config.loss.weights.content = 1.0
  config.loss.weights.cycle = 10.0
  config.loss.weights.perceptual = 5.0
  config.loss.weights.background = 1.0
  config.loss.weights.foreground = 20.0

  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.name = 'adam'
  config.optimizer.options = ml_collections.ConfigDict({'b1': 0.5, 'b2': 0.999})
  config.optimizer.learning_rate = 2e-4
  config.optimizer.warmup_steps = 0
  config.optimizer.decay = 'halve'
  config.optimizer.halve_steps = 100_000
  config.optimizer.clip_each = 0.0
  config.optimizer.clip_global = 0.0
  config.optimizer.weight_decay = 0.0
  config.optimizer.l2 = 1e-4
  config.optimizer.l2_everywhere = True

  config.augment = ml_collections.ConfigDict()
  config.augment.crop_size = 256
  config.augment.random_crop = False  # The public code crops at random what it has cropped to that size before.
  config.augment.flip = True

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

  if variant == 'paper':
    config.batch_size = 3
    config.optimizer.learning_rate = 1e-4
    config.optimizer.decay = 'constant'
    config.loss.gan = 'log'
    config.loss.penalty = 0.0
    config.loss.weights.cycle = 0.0
    config.augment.random_crop = True
  if 'paired' in flags:
    config.data.name = 'synthetic_faces/makeup_aligned_256'
    config.data.eval_split = 'validation'
    config.model.image_size = 256
    config.augment.crop_size = 192  # Of a head little more than the face.
    config.augment.random_crop = True  # In photos faces lie elsewhere.
  if 'demo' in flags:
    config.data.name = 'synthetic_faces/makeup_aligned_64'
    config.data.eval_split = 'validation'
    config.model.image_size = 64
    config.augment.crop_size = 48  # Of a head little more than the face.
    config.model.dim = config.model.discriminator_dim = 16
    config.model.mlp_dim = 64
    config.model.style_dim = 32
    config.model.num_downsamples = 1  # Of lips, more would leave nothing.
    config.model.num_blocks = 3
    config.model.discriminator_layers = 3
    config.loss.perceptual = 'none'
    config.texture.low, config.texture.high = 0.1, 0.15  # At this size features are all edges.
    config.ema_decay = 0.99
    config.batch_size = 2
    config.total_steps = 6000
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 50
    config.optimizer.decay = 'cosine'
    config.log_steps = 20
    config.eval_batches = 10
    config.eval_steps = config.render_steps = 1000
    config.checkpoint_steps = 250
    config.best_metric, config.keep_best = 'transfer/l1', 1
  if 'paired' in flags:
    for term in config.loss.weights:
      config.loss.weights[term] = 0.0
    config.loss.paired = 5.0
    config.loss.change = 20.0
    config.loss.colours = 10.0
    config.loss.perceptual = 'none'
    config.model.passes_through = True
    config.optimizer.options.b1 = 0.9
    config.optimizer.rates = ml_collections.ConfigDict({'decoder/final': 0.05})  # Or it would blur what it passes.
    config.best_metric, config.keep_best = 'pasted/l1', 1
    if 'demo' in flags:
      config.texture.low, config.texture.high = 0.4, 0.6  # No adversary sees what edges are left.
      config.batch_size, config.total_steps = 8, 12_000
      config.optimizer.learning_rate = 4e-3
  if 'smoke' in flags:
    config.data.name = 'synthetic_faces/makeup_16'
    config.data.eval_split = 'validation'
    config.model.image_size = config.augment.crop_size = 32
    config.model.dim = config.model.discriminator_dim = 4
    config.model.mlp_dim = 8
    config.model.style_dim = 12
    config.model.num_downsamples = config.model.num_blocks = 1
    config.model.discriminator_layers = 2
    config.model.discriminator_scales = 1
    config.loss.perceptual = 'none'
    config.batch_size = 8
    config.total_steps = 10
    config.log_steps = 1
    config.eval_steps = config.render_steps = 5
    config.checkpoint_steps = 5
  return config
