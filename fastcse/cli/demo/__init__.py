"""`fastcse demo`: the main job on text that every installation has, the docstrings of its own packages.

`docstrings` (the pairs), `split` (train and held-out), `cost` (time and memory of the loss), `figure`, `job` (the
whole) and `command` (the command line).
"""
