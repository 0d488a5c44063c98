"""Throughput of every system, measured part by part, and set beside an earlier result."""
