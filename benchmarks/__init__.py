"""Measurements that back the numbers in the documentation; results in `benchmarks/results/`."""
