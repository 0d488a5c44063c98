"""Steps compiled ahead of time, for TPUs and GPUs that are not there: what they need, and how fast they can be."""
