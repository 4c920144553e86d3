"""Scores of a sentence encoder: `sts` (the sets), `spearman` (their scores) and `retrieval` (MRR, recall).

Nothing is imported here: sentence-transformers takes seconds to load, and `fastcse --help` must not wait for it.
"""
