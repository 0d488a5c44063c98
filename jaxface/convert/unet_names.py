"""What the public UNets of SCA-DM and SDM call the layers that they share: SCA-DM's is made from SDM's."""

# Position of a layer in its residual block, plain and with norms modulated by the label map.
_PLAIN = {'norm1': 'in_layers.0', 'conv1': 'in_layers.2', 'norm2': 'out_layers.0', 'conv2': 'out_layers.3'}
_MODULATED = {'norm1': 'in_norm', 'conv1': 'in_layers.1', 'norm2': 'out_norm', 'conv2': 'out_layers.2'}
_RESIDUAL = {'time': 'emb_layers.1', 'skip': 'skip_connection'}
_SPADE = {'shared': 'mlp_shared.0', 'gamma': 'mlp_gamma', 'beta': 'mlp_beta'}

# Layers that are in no block.
OUTSIDE = {
  'time1': 'time_embed.0',
  'time2': 'time_embed.2',
  'stem': 'input_blocks.0.0',
  'norm': 'out.0',
  'out': 'out.2',
}
LEAVES = {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias'}


def residual_name(block: str, part: str, layer: str, inside: list[str], leaf: str) -> str:
  """Of a parameter of the residual block whose public name is `block`; on the way down, part 'encoder', it is plain."""
  own = (_PLAIN if part == 'encoder' else _MODULATED) | _RESIDUAL
  return '.'.join([block, own[layer], *(_SPADE[name] for name in inside), LEAVES[leaf]])
