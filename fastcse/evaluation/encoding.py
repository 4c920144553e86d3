"""Sentences to rows: each distinct sentence once, longest first, with one progress bar for the whole job."""

from __future__ import annotations

import torch
from sentence_transformers import SentenceTransformer
from tqdm.auto import tqdm

BATCHES_PER_STEP = 4  # encoded between two movements of the progress bar


def encode_distinct(
    model: SentenceTransformer, sentences: list[str], *, batch_size: int = 64, progress: tqdm | None = None
) -> torch.Tensor:
    """(len(sentences), D) float32 rows on the CPU, row i for sentence i; equal sentences share one encoding.

    Args:
        progress: a bar to advance by the number of sentences encoded, or None for no bar.
    """
    distinct = sorted(set(sentences), key=lambda sentence: (-len(sentence), sentence))
    chunk = batch_size * BATCHES_PER_STEP
    parts = []
    for start in range(0, len(distinct), chunk):
        part = distinct[start : start + chunk]
        rows = model.encode(part, batch_size=batch_size, show_progress_bar=False, convert_to_tensor=True)
        parts.append(rows.float().cpu())
        if progress is not None:
            progress.update(len(part))
    place = {sentence: i for i, sentence in enumerate(distinct)}
    return torch.cat(parts)[[place[sentence] for sentence in sentences]]
