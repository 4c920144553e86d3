"""Training of sentence encoders with the fused losses, on sentence-transformers' own Trainer.

`run` is the job: text (`data`), model (`encoders`), `negatives`, `trainer`, `report`.
`options` is what may be asked, `objectives` the table of losses, `recipes` settings and layers of the literature,
`checkpoints` resuming, and `processes` what several of them share.
Nothing is imported here: sentence-transformers takes seconds to load, and `fastcse --help` must not wait for it.
"""
