"""Evaluation metrics. Each module says what it measures, the direction that is better, and whose numbers it matches."""
