"""What a training run will need, before it is started: memory, time and traffic by arithmetic, nothing measured.

`hardware` (what GPUs do and encoders cost), `model` (a run and its arithmetic), `advice` (what would fit, in words).
"""
