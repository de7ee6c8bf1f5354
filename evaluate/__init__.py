"""Evaluate: exact match, generator-verifier gap, reports. The only package that reads gold answers."""
