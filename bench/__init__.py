"""Benchmarks: PST against the usual alternatives (`make bench`), and its data plane."""
