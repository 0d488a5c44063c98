"""Rendered faces with exact label maps: the embedded default dataset, needing no download."""
