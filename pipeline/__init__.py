"""The whole pipeline: rounds, status, ablations. The only package that knows all stages."""
