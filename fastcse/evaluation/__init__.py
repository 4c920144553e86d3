"""Scores of a sentence encoder: `sts` (Spearman, alignment, uniformity) and `retrieval` (MRR, recall).

Nothing is imported here: sentence-transformers takes seconds to load, and `fastcse --help` must not wait for it.
"""
