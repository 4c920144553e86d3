"""Every public loss in one table: how it is called, and what it is worth in plain torch.

A loss that is not in `LOSSES` fails `test_every_public_loss_is_in_the_table`; one that is in it has every property of
properties.py tested, on every backend, and compiled.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from calls import everything
from plain import (
    angular,
    clusterns,
    contrastive,
    cosines,
    detached,
    everything_rows,
    focal,
    hsimcse,
    moved,
    quadruplet,
    scaled,
    soft_negative,
    sscl,
    uniformity,
    unit,
)

import fastcse

NAN = float("nan")


@dataclass(frozen=True)
class LossCase:
    """One way to call a public function over rows."""

    function: Callable
    make: Callable  # (n, draw) -> its tensors by name, float64; draw(*shape) makes rows
    oracle: Callable  # the same arguments in float64 plain torch -> what reduction="none" gives, or the scalar
    learns: tuple = ("anchor", "candidate")  # arguments that have a gradient
    rows: tuple | None = (
        None  # arguments of rows of one kind, whose shapes, types and devices are checked; None: learns
    )
    options: dict = field(default_factory=dict)
    spoilt: str | None = "anchor"  # a NaN in row 3 of this argument spoils row 3 of the result and no other
    plain: bool = False  # made of plain torch operations: it may be differentiated twice
    pick: Callable = lambda out: out
    bad: tuple = ()  # (changed arguments, what the error says)

    def takes(self, option):
        return option in inspect.signature(self.function).parameters

    @property
    def reductions(self):
        return ("mean", "sum", "none") if self.takes("reduction") or self.function is everything else (None,)


def pair(more=2):
    """Anchors, and candidates of which the first are near them."""

    def make(n, draw):
        anchor = draw(n, 5)
        return {"anchor": anchor, "candidate": torch.cat([anchor + draw(n, 5), draw(more, 5)])}

    return make


def learned(n, draw):
    return {**pair()(n, draw), "temperature": torch.tensor(0.3, dtype=torch.float64)}


def with_negatives(n, draw):
    made = pair()(n, draw)
    return {**made, "positive": torch.arange(n).flip(0), "negatives": draw(4, 5)}


def with_corpus(n, draw):
    made = pair()(n, draw)
    return {**made, "corpus_negative": 0.5 * made["anchor"] + draw(n, 5)}


def quad(n, draw):
    anchor = draw(n, 5)
    names = ("positive", "batch_negative", "corpus_negative")
    return {"anchor": anchor} | {name: 0.5 * anchor + draw(n, 5) for name in names}


def quad_index(n, draw):
    return {**quad(n, draw), "batch_negative": torch.arange(n) % 7 - 1, "candidate": draw(6, 5)}


def clusters(n, draw):
    made = pair(more=0)(n, draw)
    return {**made, "index": torch.arange(n) % 4 - 1, "centroids": draw(3, 5), "counts": torch.tensor([2, 0, 3])}


def soft(n, draw):
    made = pair()(n, draw)
    return {**made, "soft_negative": made["anchor"] + 0.5 * draw(n, 5)}


def both(one, two):
    return rf"(?s){one}.*{two}|{two}.*{one}"


WARM = {"temperature": 0.3}
R = torch.randn
IDS = (
    ({"candidate": R(5, 5)}, both("candidate", "8 anchors")),
    ({"positive": torch.arange(13)}, "positive.*13"),
    ({"positive": torch.arange(8, dtype=torch.int32)}, both("int64", "int32")),
    ({"anchor_id": torch.arange(13), "candidate_id": torch.arange(10)}, "anchor_id.*13"),
    ({"anchor_id": torch.arange(8), "candidate_id": torch.arange(13)}, "candidate_id.*13"),
    ({"candidate_id": torch.arange(10)}, both("anchor_id", "candidate_id")),
    ({"anchor_id": torch.arange(8)}, both("anchor_id", "candidate_id")),
)
BLOCKS = (
    ({"negatives": R(4, 17)}, both(r"\b5\b", "17")),
    ({"negatives": R(4, 5).half()}, both("float32", "float16")),
    ({"negatives": R(4, 5, device="meta")}, both("cpu", "meta")),
    ({"negatives": fastcse.CandidateBlock(R(4, 5), log_weight=torch.zeros(13))}, both(r"\b4\b", "13")),
    ({"negatives": fastcse.CandidateBlock(R(4, 5), id=torch.arange(4))}, "anchor_id"),
    ({"negatives": fastcse.CandidateBlock(R(4, 5), id=torch.arange(13)), "anchor_id": torch.arange(8)}, "13"),
)
HINGE = (
    ({"form": "triplet"}, both("triplet", "weighted")),
    ({"weights": (-0.25, 0.1)}, "weights.*-0.25"),
    ({"weights": (0.9, -0.125)}, "weights.*-0.125"),
    ({"weights": (0.9, NAN)}, "weights.*nan"),
    ({"weights": (torch.inf, 0.1)}, "weights.*inf"),
    ({"weights": (0.9, 0.11, 0.625)}, "weights.*0.625"),
    ({"weights": 0.625}, "weights.*0.625"),
    ({"margin": NAN}, "margin.*nan"),
    ({"margin": "wide"}, "margin.*wide"),
    ({"margin": (0.125, 0.25)}, r"margin.*0\.125"),
    ({"form": "classic", "margin": NAN, "weights": (0.9, 0.11)}, "margin.*nan"),
    ({"form": "classic", "margin": (0.1, NAN), "weights": (0.9, 0.11)}, "margin.*nan"),
    ({"form": "classic", "margin": (0.1, 0.2, 0.625), "weights": (0.9, 0.11)}, "margin.*0.625"),
    ({"form": "classic", "margin": 0.1, "weights": (0.9, 0.625)}, both("classic", r"0\.625")),
    ({"corpus_negative": R(13, 5)}, both(r"\b8\b", "13")),
)
ATTACK = (
    ({"noise": -0.25}, "noise.*-0.25"),
    ({"noise": NAN}, "noise.*nan"),
    ({"noise": torch.inf}, "noise.*inf"),
)
FOUR = ("anchor", "positive", "batch_negative", "corpus_negative")
CLASSIC = {"form": "classic", "margin": (0.4, -0.1)}

LOSSES = {
    "infonce": LossCase(fastcse.infonce_loss, pair(), contrastive(scaled), options=WARM, bad=IDS + BLOCKS),
    "infonce symmetric": LossCase(
        fastcse.infonce_loss, learned, contrastive(scaled, symmetric=True), ("anchor", "candidate", "temperature"),
        rows=("anchor", "candidate"), options={"symmetric": True}, spoilt=None,
    ),
    "infonce raw": LossCase(
        fastcse.infonce_loss, with_negatives, contrastive(scaled, normalize=False),
        ("anchor", "candidate", "negatives"), options=WARM | {"normalize": False},
    ),
    "focal": LossCase(
        fastcse.focal_infonce_loss, learned, contrastive(focal, 0.3), ("anchor", "candidate", "temperature"),
        rows=("anchor", "candidate"), bad=IDS + BLOCKS,
    ),
    "focal detached": LossCase(
        fastcse.focal_infonce_loss, with_negatives, contrastive(detached, 0.1), ("anchor", "candidate", "negatives"),
        options=WARM | {"margin": 0.1, "detach_modulation": True},
    ),
    "angular": LossCase(
        fastcse.angular_infonce_loss, pair(), contrastive(angular, 0.4), options=WARM | {"margin": 0.4},
        bad=(*IDS, *(({"margin": x}, f"margin.*{x}") for x in (-0.1, 1.6, NAN))),
    ),
    "angular symmetric": LossCase(
        fastcse.angular_infonce_loss, pair(), contrastive(angular, 0.4, symmetric=True),
        options=WARM | {"margin": 0.4, "symmetric": True}, spoilt=None,
    ),
    "everything": LossCase(
        everything, lambda n, draw: {"a": draw(n, 5), "c": draw(n + 2, 5), "h": draw(4, 5)}, everything_rows(False),
        ("a", "c", "h"), rows=(), spoilt="a",
    ),
    "everything symmetric": LossCase(
        everything, lambda n, draw: {"a": draw(n, 5), "c": draw(n + 2, 5), "h": draw(4, 5)}, everything_rows(True),
        ("a", "c", "h"), rows=(), options={"symmetric": True}, spoilt=None,
    ),
    "hsimcse": LossCase(
        fastcse.hsimcse_loss, with_corpus, hsimcse(margin=0.5, weights=(0.9, 0.5)), options=WARM | {
            "noise": 0.0, "margin": 0.5, "weights": (0.9, 0.5)},
        rows=("anchor", "candidate", "corpus_negative"), spoilt="corpus_negative",
        bad=(*IDS, *HINGE, *ATTACK,
            ({"quadruplet_weight": NAN}, "quadruplet_weight.*nan"), ({"adversarial_step": NAN}, "step.*nan"),
            ({"adversarial_mode": "fgsm"}, both("fgsm", "raw")),
        ),
    ),
    "hsimcse classic": LossCase(
        fastcse.hsimcse_loss, lambda n, draw: {**with_corpus(n, draw), "positive": torch.arange(n).flip(0)},
        hsimcse(**CLASSIC), options=WARM | CLASSIC | {"noise": 0.0},
        spoilt="corpus_negative",
    ),
    "quadruplet": LossCase(
        fastcse.quadruplet_loss, quad, quadruplet(margin=0.3, weights=(0.5, 0.7)), FOUR,
        options={"margin": 0.3, "weights": (0.5, 0.7)}, bad=(*HINGE,
            ({"positive": R(13, 5)}, both(r"\b8\b", "13")), ({"batch_negative": R(13, 5)}, both(r"\b8\b", "13")),
            ({"corpus_negative": R(1, 5)}, both(r"\b8\b", r"\b1\b")), ({"batch_negative": R(8, 5, 7)}, "7"),
            ({"candidate": R(6, 5)}, both("candidate", "batch_negative")),
        ),
    ),
    "quadruplet classic": LossCase(
        fastcse.quadruplet_loss, quad_index, quadruplet(**CLASSIC), ("anchor", "positive", "candidate",
                                                                     "corpus_negative"), options=CLASSIC,
        bad=(
            ({"batch_negative": torch.arange(13)}, both(r"\b8\b", "13")),
            ({"batch_negative": torch.ones(8, dtype=torch.int32)}, both("int64", "int32")),
            ({"batch_negative": R(8)}, both("int64", "float32")),
            ({"batch_negative": torch.arange(8, device="meta")}, both("cpu", "meta")),
            ({"batch_negative": torch.ones(8, 3, dtype=torch.int64)}, "batch_negative.*int64"),
            ({"candidate": None}, both("candidate", "batch_negative")), ({"candidate": R(0, 5)}, r"\(0, 5\)"),
        ),
    ),
    "adversarial": LossCase(
        fastcse.adversarial_positive, lambda n, draw: dict(zip(("anchor", "positive"), quad(n, draw).values())), moved,
        (), rows=("anchor", "positive"), options={"noise": 0.0}, spoilt="positive", bad=(*ATTACK,
            ({"positive": R(13, 5)}, both(r"\b8\b", "13")), ({"step": NAN}, "step.*nan"),
            ({"step": -torch.inf}, "step.*-inf"), ({"mode": "fgsm"}, both("fgsm", "raw")),
        ),
    ),
    "adversarial l2": LossCase(
        fastcse.adversarial_positive, lambda n, draw: dict(zip(("anchor", "positive"), quad(n, draw).values())),
        lambda anchor, positive: moved(anchor, positive, 0.3, 0.7, "l2"), (), rows=("anchor", "positive"),
        options=WARM | {"noise": 0.0, "step": 0.7, "mode": "l2"}, spoilt="positive",
    ),
    "clusterns": LossCase(
        fastcse.clusterns_loss, clusters, clusterns("margin"),
        options=WARM | {"margin_weight": 2.0, "alpha": 0.1, "beta": 0.2}, bad=(*BLOCKS[:3],
            ({"candidate": R(5, 5)}, both(r"\b8\b", r"\b5\b")),
            ({"index": torch.arange(13)}, both(r"\(8,\)", r"\(13,\)")),
            ({"counts": None}, "centroids needs counts"), ({"centroids": None}, "counts needs centroids"),
            ({"counts": torch.ones(1, dtype=torch.int64)}, r"counts.*\(3,\).*\(1,\)"),
            ({"centroids": R(3, 4)}, r"\(3, 4\) and \(8, 5\)"),
            ({"margin_reduction": "sum"}, "margin_reduction.*'sum'"),
            ({"false_negatives": "keep"}, "false_negatives.*'keep'"), ({"beta": NAN}, "beta.*nan"),
        ),
    ),
    "clusterns remove": LossCase(
        fastcse.clusterns_loss, clusters, clusterns("remove"), options=WARM | {"false_negatives": "remove"},
    ),
    "clusterns active": LossCase(
        fastcse.clusterns_loss, clusters, clusterns("active"),
        options=WARM | {"margin_weight": 2.0, "margin_reduction": "active", "alpha": 0.1, "beta": 0.2},
    ),
    "clusterns positive": LossCase(
        fastcse.clusterns_loss, clusters, clusterns("positive"), options=WARM | {"false_negatives": "positive"},
    ),
    "soft_negative": LossCase(
        fastcse.soft_negative_loss, soft, soft_negative, ("anchor", "candidate", "soft_negative"),
        options=WARM | {"margin_weight": 1.5}, bad=(*IDS, *BLOCKS[:3],
            ({"soft_negative": R(13, 5)}, both(r"\b8\b", "13")), ({"alpha": NAN}, "alpha.*nan"),
            ({"margin_weight": torch.inf}, "margin_weight.*inf"),
        ),
    ),
    "sscl": LossCase(
        fastcse.sscl_loss, lambda n, draw: {"anchor": draw(n, 15), "candidate": draw(n + 2, 15)}, sscl, options=WARM,
        spoilt=None, bad=(*IDS[1:],
            ({"parts": 4}, "15.*parts=4"), ({"parts": 0}, "parts.*0"), ({"negatives": R(3, 7)}, "5 or 15.*7"),
        ),
    ),
    "alignment": LossCase(
        fastcse.alignment, lambda n, draw: dict(zip(("anchor", "positive"), quad(n, draw).values())),
        lambda anchor, positive: (unit(anchor) - unit(positive)).square().sum(1).mean(), ("anchor", "positive"),
        plain=True, bad=(({"positive": R(13, 5)}, both(r"\b8\b", "13")),),
    ),
    "uniformity": LossCase(
        fastcse.uniformity, lambda n, draw: {"rows": draw(n, 5)}, uniformity, ("rows",), spoilt="rows", plain=True,
        bad=(({"rows": R(1, 5)}, "1"), ({"t": 0.0}, "t.*0"), ({"t": NAN}, "t.*nan")),
    ),
    "similarity": LossCase(fastcse.similarity, pair(), cosines),
    "hardest_negative": LossCase(
        fastcse.hardest_negative, pair(),
        lambda anchor, candidate: cosines(anchor, candidate).masked_fill(
            torch.eye(len(anchor), len(candidate), dtype=torch.bool, device=anchor.device), -torch.inf).amax(1),
        (), rows=("anchor", "candidate"), spoilt=None, pick=lambda out: out.value, bad=IDS,
    ),
}  # fmt: skip
