"""ClusterNS's clustering of a run, kept beside the checkpoints."""

from __future__ import annotations

from typing import Any

from ..clustering.online import OnlineKMeans
from .kept_state import KeptState
from .processes import Processes


class ClusterUpkeep(KeptState):
    """Saves the clustering before each checkpoint."""

    def __init__(self, clusters: OnlineKMeans, output_dir: str, processes: Processes):
        super().__init__("clusters", output_dir, processes)
        self.clusters = clusters

    def state_dict(self) -> dict[str, Any]:
        return self.clusters.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.clusters.load_state_dict(state)
