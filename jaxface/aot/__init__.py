"""Steps compiled ahead of time, for TPU pods that are not there: what they need, and how fast they can be."""
