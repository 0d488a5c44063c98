"""jaxface: face VAEs, semantic face synthesis and makeup transfer in JAX."""

__version__ = '0.1.0'
