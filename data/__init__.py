"""TFDS builders of jaxface, installed as `jaxface_data`; one folder each, in TFDS's own convention."""
