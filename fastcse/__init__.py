"""Fused contrastive losses for training sentence embeddings: the same gradient, faster, without the N x M matrix."""

from .clustering.kmeans import KMeans
from .clustering.online import OnlineAssignment, OnlineKMeans
from .losses.adversarial import adversarial_positive
from .losses.alignment_uniformity import alignment, uniformity
from .losses.angular import angular_infonce_loss
from .losses.clusterns import clusterns_loss
from .losses.contrastive import CandidateBlock, ContrastiveStats, LossAndStats
from .losses.focal import focal_infonce_loss
from .losses.hsimcse import hsimcse_loss
from .losses.infonce import infonce_loss
from .losses.negative_queue import NegativeQueue
from .losses.quadruplet import quadruplet_loss
from .losses.soft_negative import soft_negative_loss
from .losses.sscl import sscl_loss
from .mining.corpus_negatives import CorpusNegatives
from .mining.negatives import MinedNegatives, mine_negatives
from .mining.positives import Positives
from .mining.texts import mine_hard_negatives
from .modules import (
    AngularInfoNCELoss,
    ClusterNSLoss,
    FocalInfoNCELoss,
    HSimCSELoss,
    InfoNCELoss,
    QuadrupletLoss,
)
from .moved import renamed as __getattr__  # noqa: F401
from .ops.dispatch import BackendStatus, backends, last_backend
from .ops.hardest import HardestNegative, hardest_negative
from .ops.kmeans_steps import Assignment, ClusterSums, assign, cluster_sums
from .ops.similarity_matrix import similarity
from .ops.topk_search import TopK, topk
from .retrieval.index import CorpusIndex

__version__ = "0.1.0"

__all__ = [
    "AngularInfoNCELoss",
    "Assignment",
    "BackendStatus",
    "CandidateBlock",
    "ClusterNSLoss",
    "ClusterSums",
    "ContrastiveStats",
    "CorpusIndex",
    "CorpusNegatives",
    "FocalInfoNCELoss",
    "HSimCSELoss",
    "HardestNegative",
    "InfoNCELoss",
    "KMeans",
    "LossAndStats",
    "MinedNegatives",
    "NegativeQueue",
    "OnlineAssignment",
    "OnlineKMeans",
    "Positives",
    "QuadrupletLoss",
    "TopK",
    "adversarial_positive",
    "alignment",
    "angular_infonce_loss",
    "assign",
    "backends",
    "cluster_sums",
    "clusterns_loss",
    "focal_infonce_loss",
    "hardest_negative",
    "hsimcse_loss",
    "infonce_loss",
    "last_backend",
    "mine_hard_negatives",
    "mine_negatives",
    "quadruplet_loss",
    "similarity",
    "soft_negative_loss",
    "sscl_loss",
    "topk",
    "uniformity",
]
