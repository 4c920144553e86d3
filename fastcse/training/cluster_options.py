"""What may be asked of ClusterNS's clustering of a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..clustering.online import MODES, REDUCES, OnlineKMeans
from ..clustering.online_start import STARTS
from ..errors import InputError

MOST_CLUSTERS = 128  # of the released settings, with batches of 256 and more


@dataclass(frozen=True)
class ClusterOptions:
    """The options of `OnlineKMeans`, under the names of the command line. `clusters=None` is 128, or half of a smaller
    batch.

    Raises:
        InputError: an option outside its range, named with the value that came.
    """

    clusters: int | None = None
    cluster_mode: str = "momentum"
    cluster_rate: float = 1e-3
    centroid_reduce: str = "sum"
    cluster_start: str = "chain"
    cluster_threshold: float = 0.4

    @classmethod
    def of(cls, given: dict[str, Any], batch_size: int) -> ClusterOptions:
        """Those of `given` that are not None, the rest by default, checked."""
        chosen = {name: value for name, value in given.items() if value is not None}
        options = cls(**{"clusters": min(MOST_CLUSTERS, max(2, batch_size // 2)), **chosen})
        if not 2 <= options.clusters <= batch_size:
            raise InputError(f"--clusters is {options.clusters}: expected 2 to the {batch_size} of --batch-size")
        for name, known in (("cluster_mode", MODES), ("centroid_reduce", REDUCES), ("cluster_start", STARTS)):
            value = getattr(options, name)
            if value not in known:
                raise InputError(f"--{name.replace('_', '-')} {value!r} is unknown: expected {' or '.join(known)}")
        try:
            options.make(1, None)
        except ValueError as error:
            raise InputError(f"--cluster-rate {options.cluster_rate}, --cluster-threshold "
                             f"{options.cluster_threshold}: {error}") from None  # fmt: skip
        return options

    def make(self, dim: int, seed: int | None, backend: str | None = None, across_ranks: bool = False) -> OnlineKMeans:
        """The clustering, not started yet."""
        return OnlineKMeans(
            self.clusters, dim, mode=self.cluster_mode, rate=self.cluster_rate, centroid_reduce=self.centroid_reduce,
            start=self.cluster_start, threshold=self.cluster_threshold, seed=seed,
            across_ranks=across_ranks, backend=backend,
        )  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
