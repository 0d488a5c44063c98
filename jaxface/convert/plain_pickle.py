"""Unpickling files of strangers: a pickle may build plain containers and what a reader knows, and can call nothing."""

import io
import pickle
import pickletools
import struct
from collections.abc import Mapping
from typing import Any, NoReturn

from jaxface.errors import UserError

# What a damaged or hostile pickle can make the unpickler raise, beside its own error.
BROKEN = (
  pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, KeyError, TypeError, ValueError,
  OverflowError, MemoryError, RuntimeError, OSError, struct.error,
)  # fmt: skip


class PlainUnpickler(pickle.Unpickler):
  """Reads one pickle after the other from a stream.

  Args:
    path: of the file, for messages.
    stream: its content, from the first pickle on.
    known: (module, name) of a global -> what it means here: types and bound methods, of which, unlike of functions, a
      pickle can change nothing.
    encoding: of Python 2's byte strings.
    way_out: how to get a file that is read, for the message that refuses one.
  """

  def __init__(
    self, path: str, stream: io.BytesIO, known: Mapping[tuple[str, str], Any], *, encoding: str, way_out: str
  ):
    super().__init__(stream, encoding=encoding)
    self._path, self._stream, self._known, self._way_out = path, stream, known, way_out

  def load(self) -> Any:
    """What the next pickle of the stream holds; raises one of `BROKEN` where it is damaged."""
    start = self._stream.tell()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(self._stream)):
      # Four damaged bytes could make the unpickler claim all memory for a number's place.
      if opcode.name in ('PUT', 'BINPUT', 'LONG_BINPUT') and argument > count:
        raise ValueError(f'{opcode.name} {argument}')
    self._stream.seek(start)
    return super().load()

  def find_class(self, module: str, name: str) -> Any:
    """What a global of the pickle means here: never the thing of that name, which is not even looked up."""
    if (module, name) in self._known:
      return self._known[module, name]
    path, way_out = self._path, self._way_out
    # The file's own words go to a terminal.
    code = ''.join(letter if letter.isprintable() else '?' for letter in f'{module}.{name}'[:80])

    def refuse(*_: Any, **__: Any) -> NoReturn:
      raise UserError(
        f'{path} is a pickle that would run {code}; {way_out}, and never load a file whose source you do not trust'
      )

    # As a mere name, such as a dictionary's key, it does no harm; making one of it is refused.
    return type(name, (), {'__new__': refuse, '__module__': module})
