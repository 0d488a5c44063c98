"""Face-parsing classes: names, orders, palette, left/right pairs and the face region.

Inside the project a label map is uint8 [H, W] with values 0..18 in the official CelebAMask-HQ order (`CLASSES`). Other
orders are remapped by name at the border, with `lookup_table`.

"left" and "right" are the subject's own, so `l_eye` lies on the right-hand side of an unmirrored picture.
"""

import numpy as np

from jaxface.errors import UserError

# Lee et al. 2020, CelebAMask-HQ: the official order.
CLASSES = (
  'background', 'skin', 'nose', 'eye_g', 'l_eye', 'r_eye', 'l_brow', 'r_brow', 'l_ear', 'r_ear', 'mouth', 'u_lip',
  'l_lip', 'hair', 'hat', 'ear_r', 'neck_l', 'neck', 'cloth',
)  # fmt: skip

# zllrunning/face-parsing.PyTorch and the parsers derived from it.
BISENET_CLASSES = (
  'background', 'skin', 'l_brow', 'r_brow', 'l_eye', 'r_eye', 'eye_g', 'l_ear', 'r_ear', 'ear_r', 'nose', 'mouth',
  'u_lip', 'l_lip', 'neck', 'neck_l', 'cloth', 'hair', 'hat',
)  # fmt: skip

# Li et al. 2018, Makeup Transfer (MT): what stands on a head or hangs from it is not told apart.
MAKEUP_TRANSFER_CLASSES = (
  'background', 'skin', 'l_brow', 'r_brow', 'l_eye', 'r_eye', 'nose', 'u_lip', 'mouth', 'l_lip', 'hair', 'l_ear',
  'r_ear', 'neck',
)  # fmt: skip

ORDERS = {'celebamask_hq': CLASSES, 'bisenet': BISENET_CLASSES, 'makeup_transfer': MAKEUP_TRANSFER_CLASSES}

# Those that have every class, as a parser's outputs must.
FULL_ORDERS = tuple(order for order, classes in ORDERS.items() if len(classes) == len(CLASSES))

NUM_CLASSES = len(CLASSES)

# Toledo & Antonelo 2021: these are not face; hair and hat are.
NOT_FACE = ('background', 'l_ear', 'r_ear', 'ear_r', 'neck', 'neck_l', 'cloth')

# One colour per class of `CLASSES`, RGB: hues apart for neighbours in a face, the same family for a left/right pair.
PALETTE = np.array(
  [
    (0, 0, 0), (226, 180, 150), (190, 120, 90), (90, 90, 200), (40, 160, 240), (20, 100, 200), (110, 70, 30),
    (150, 100, 40), (240, 140, 120), (220, 110, 100), (120, 10, 20), (220, 50, 80), (190, 20, 60), (70, 45, 70),
    (60, 180, 90), (250, 220, 40), (240, 190, 20), (200, 150, 130), (50, 130, 130),
  ],
  np.uint8,
)  # fmt: skip


def index(name: str) -> int:
  """Index of class `name` in the project's order."""
  if name not in CLASSES:
    raise UserError(f'unknown face-parsing class {name!r}; choose from {", ".join(CLASSES)}')
  return CLASSES.index(name)


def lookup_table(order: str) -> np.ndarray:
  """uint8 [classes of the order]: `lookup_table(order)[label]` is the same class in the project's order.

  A label map's values must be below the table's length, which is not 19 in every order.
  """
  if order not in ORDERS:
    raise UserError(f'unknown label order {order!r}; choose from {", ".join(ORDERS)}')
  return np.array([CLASSES.index(name) for name in ORDERS[order]], np.uint8)


def _mirror_table() -> np.ndarray:
  swapped = {'l_': 'r_', 'r_': 'l_'}
  # l_lip is the lower lip, not a left one: only classes whose mirror image exists are swapped.
  mirror = [swapped.get(name[:2], '') + name[2:] for name in CLASSES]
  return np.array(
    [CLASSES.index(m if m in CLASSES else name) for m, name in zip(mirror, CLASSES, strict=True)], np.uint8
  )


# MIRROR[label] is the class a pixel of class `label` has in a mirrored picture: left and right change places.
MIRROR = _mirror_table()

# UNITED[label] is one class for both sides, the left's, for label maps that do not tell them apart reliably.
UNITED = np.minimum(np.arange(NUM_CLASSES, dtype=np.uint8), MIRROR)

# FACE[label] is 1 where the class counts as face (Toledo & Antonelo 2021), else 0.
FACE = np.array([name not in NOT_FACE for name in CLASSES], np.uint8)
