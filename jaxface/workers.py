"""Processes that work for another one, and do not outlive it."""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
  """Called in a process of `multiprocessing`: it will end when the one that started it does, however that ends."""
  threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
  parent.join()
  os._exit(1)
