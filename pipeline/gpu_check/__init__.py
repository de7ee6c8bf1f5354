"""`make gpu-check`: whether this machine computes what the project promises, offline: in at most 4 minutes on a GPU.

Steps that share a process come one after the other (a start with its imports takes seconds); each has its own verdict
and its own deadline, and a process that hangs or dies costs the steps that it had not finished. Runs on a CPU, too
(at most 12 minutes), with the steps that make sense there and small shapes.
"""
