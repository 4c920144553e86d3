"""Fused contrastive losses for training sentence embeddings: the same gradient, faster, without the N x M matrix."""

from .clustering.kmeans import KMeans
from .clustering.online import OnlineAssignment, OnlineKMeans
from .losses.adversarial import adversarial_positive
from .losses.angular import angular_infonce_loss
from .losses.clusterns import ClusterNSStats, clusterns_loss
from .losses.contrastive import CandidateBlock, ContrastiveStats, LossAndStats
from .losses.focal import focal_infonce_loss
from .losses.hsimcse import HSimCSEStats, hsimcse_loss
from .losses.infonce import infonce_loss
from .losses.intermediate import SSCLStats, sscl_loss
from .losses.quadruplet import quadruplet_loss
from .losses.soft_negative import SoftNegativeStats, soft_negative_loss
from .losses.spread import alignment, uniformity
from .mining.corpus_negatives import CorpusNegatives
from .mining.negatives import MinedNegatives, mine_negatives
from .mining.positives import Positives
from .mining.texts import mine_hard_negatives
from .modules.papers import ClusterNSLoss, HSimCSELoss, QuadrupletLoss
from .modules.queue import NegativeQueue
from .modules.softmax import AngularInfoNCELoss, FocalInfoNCELoss, InfoNCELoss
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
    "ClusterNSStats",
    "ClusterSums",
    "ContrastiveStats",
    "CorpusIndex",
    "CorpusNegatives",
    "FocalInfoNCELoss",
    "HSimCSELoss",
    "HSimCSEStats",
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
    "SSCLStats",
    "SoftNegativeStats",
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
