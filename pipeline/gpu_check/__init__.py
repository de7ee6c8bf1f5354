"""`make gpu-check`: checks offline that this machine computes what the project promises, in at most 4 minutes on a GPU.

Steps that share a process run one after the other (a start with its imports takes seconds). Each has its own verdict
and deadline; if a process hangs or dies, its unfinished steps are lost. It also runs on a CPU (at most 12 minutes),
with the steps that make sense there and small shapes.
"""
