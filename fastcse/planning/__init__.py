"""What a training run will need, before it is started: memory, time and traffic by arithmetic, nothing measured.

`hardware` (what a GPU can do), `encoder` (what a model costs), `model` (the arithmetic) and `advice` (what would fit).
"""
