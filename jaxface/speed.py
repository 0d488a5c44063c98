"""What a configuration becomes where only speed is asked for: it does not ask what was learnt."""

import copy

from ml_collections import ConfigDict

from jaxface import weights

# Of `loss.perceptual`: published weights -> networks of the same size that were never trained.
_UNTRAINED = {
  'vggface2': 'random',
  'vgg19': f'{weights.UNTRAINED}vgg19',
  'lpips-vgg': f'{weights.UNTRAINED}lpips-vgg',
}


def for_speed(config: ConfigDict) -> ConfigDict:
  """A copy of `config` whose task is made without any file: its steps compute the same, on weights never trained.

  That is so of the networks that losses compare by, and of a first stage where `config` names none: it is then of the
  published size (`first_stage.random`).
  """
  config = copy.deepcopy(config)
  perceptual = config.get('loss', {}).get('perceptual')
  if perceptual in _UNTRAINED:
    config.loss.perceptual = _UNTRAINED[perceptual]
  if 'first_stage' in config and not config.first_stage.workdir:
    config.first_stage.workdir = 'random'
  return config


def never_trained(config: ConfigDict) -> list[str]:
  """The frozen networks of `config` that were never trained, as its keys name them, for people to read."""
  found = []
  perceptual = str(config.get('loss', {}).get('perceptual', ''))
  if perceptual == 'random' or perceptual.startswith(weights.UNTRAINED):
    found.append(f'loss.perceptual={perceptual}')
  if 'first_stage' in config and config.first_stage.workdir == 'random':
    found.append('first_stage.workdir=random')
  return found
