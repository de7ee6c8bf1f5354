"""Benchmarks, not tests: this project beside the systems that one would otherwise use (`make bench`), and its data plane."""
