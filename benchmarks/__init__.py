"""Benchmarks and studies of transvert."""
