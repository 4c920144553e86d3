"""Losses for `SentenceTransformerTrainer`: fastcse's own, and sentence-transformers' under its names and arguments."""

from .cached import CachedFusedContrastiveLoss
from .fused import FusedContrastiveLoss, embed, two_views
from .gist import CachedGISTEmbedLoss, GISTEmbedLoss
from .multiple_negatives import CachedMultipleNegativesRankingLoss, MultipleNegativesRankingLoss

__all__ = [
    "CachedFusedContrastiveLoss",
    "CachedGISTEmbedLoss",
    "CachedMultipleNegativesRankingLoss",
    "FusedContrastiveLoss",
    "GISTEmbedLoss",
    "MultipleNegativesRankingLoss",
    "embed",
    "two_views",
]
