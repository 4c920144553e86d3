"""What is measured: one training step of an encoder on N pairs, and what is written down of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..subject import Entry


@dataclass(frozen=True)
class StepProblem:
    """N sentences, each an anchor and its own positive: 2 N are encoded. `texts` is a file with one a line, `corpus`
    says where they come from.

    What is encoded at once is `mini_batch`, of those that cache gradients; the others encode a column at once, and run
    only where a step is expected to take at most `memory_limit` bytes.
    """

    n: int
    texts: str
    corpus: str = ""
    mini_batch: int = 64
    model: str = "minilm"
    max_length: int = 32
    memory_limit: int = 4 << 30
    device: str = "cpu"
    temperature: float = 0.05
    seed: int = 0

    operation = "training step"
    counted = "pairs"
    mode = "full"
    dtype = "float32"
    flops = None

    def __post_init__(self):
        for name in ("n", "mini_batch", "max_length", "memory_limit"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def m(self) -> int:
        """Candidates."""
        return self.n

    @property
    def sentences(self) -> int:
        """That a step trains on."""
        return 2 * self.n

    @property
    def size(self) -> str:
        """Pairs and mini-batch."""
        return f"N = {self.n}, mini-batch {self.mini_batch}"

    @property
    def setting(self) -> str:
        """All but the sizes."""
        return f"{self.model}, at most {self.max_length} tokens, {self.dtype} on {self.device}, {self.corpus}"

    @property
    def title(self) -> str:
        """One line that says what is measured."""
        return f"{self.operation}, {self.size}, {self.setting}"

    def labels(self) -> dict[str, Any]:
        """Everything about it, for files; not where its texts lay."""
        kept = {key: value for key, value in asdict(self).items() if key != "texts"}
        return {"operation": self.operation, "m": self.m, "dtype": self.dtype, "mode": self.mode, **kept}


@dataclass
class StepRow(Entry):
    """A provider of the step. `loss` and `gradient_norm` are without dropout and at the same weights: the loss of all
    pairs, the gradient of the first few."""

    sentences_s: float | None = None
    loss: float | None = None
    gradient_norm: float | None = None

    def rate(self, problem: StepProblem) -> None:
        """Sentences a second."""
        self.sentences_s = 1e3 * problem.sentences / self.ms
