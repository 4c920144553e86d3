"""Scores of a sentence encoder: `sts` (the sets) and `evaluators` (what a model scores on them, and on pairs).

Nothing is imported here: sentence-transformers takes seconds to load, and `fastcse --help` must not wait for it.
"""
