"""What lm-evaluation-harness says of a run's peers, before and after training: an opinion from outside, beside ours.

The harness imports Hugging Face's `evaluate`, and this project has a package of that name. So it runs as a script in a
process and a folder of its own (harness.py), with tasks of local files (tasks.py, grading.py).
"""
