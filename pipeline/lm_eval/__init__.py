"""Evaluates a run's peers with lm-evaluation-harness, before and after training: an independent check of our figures.

The harness imports Hugging Face's `evaluate`, and this project has a package of that name. So it runs as a script in
its own process and folder (harness.py), with tasks made of local files (tasks.py, grading.py).
"""
