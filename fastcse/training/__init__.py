"""Training of sentence encoders with the fused losses, on sentence-transformers' own Trainer.

`objectives` (the table), `options` (what may be asked), `encoders` (models), `data` (text), `trainer` (the loop),
`recipes` (those of the literature), `checkpoints` (resuming) and `run` (the job).
Nothing is imported here: sentence-transformers takes seconds to load, and `fastcse --help` must not wait for it.
"""
