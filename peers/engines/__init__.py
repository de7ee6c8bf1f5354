"""Inference engines behind one small protocol (protocol.py)."""
