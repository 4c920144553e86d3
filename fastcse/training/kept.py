"""What a run keeps beside its checkpoints, so that a resumed run goes on with it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from ..errors import InputError


class KeptByStep:
    """Files or folders `NAME-STEP` in the output folder, each as it was after that step and until the next."""

    def __init__(self, output_dir: str | Path, name: str):
        self.output_dir, self.name = Path(output_dir), name

    def at(self, step: int) -> Path:
        """Where that of a step is written."""
        return self.output_dir / f"{self.name}-{step}"

    def saved(self) -> dict[int, Path]:
        """All that are there, by step."""
        found = ((path.name[len(self.name) + 1 :], path) for path in self.output_dir.glob(f"{self.name}-*"))
        return {int(step): path for step, path in found if step.isdigit()}

    def before(self, checkpoint: Path) -> Path:
        """That of a checkpoint: the newest that is not newer.

        Raises:
            InputError: there is none.
        """
        step, saved = _step(checkpoint), self.saved()
        if not any(number <= step for number in saved):
            raise InputError(
                f"--resume found no {self.name} of {checkpoint.name} in --output-dir {str(self.output_dir)!r}"
            )
        return saved[max(number for number in saved if number <= step)]

    def prune(self) -> None:
        """Remove what no checkpoint needs."""
        saved = self.saved()
        found = (path.name.rpartition("-")[2] for path in self.output_dir.glob("checkpoint-*"))
        steps = [int(step) for step in found if step.isdigit()]
        needed = {max(number for number in saved if number <= step) for step in steps if min(saved, default=0) <= step}
        self._remove(saved.keys() - needed)

    def begin(self) -> None:
        """Remove what a run before this one has left, which may be of other options or other processes."""
        self._remove(self.saved().keys())

    def _remove(self, steps: Iterable[int]) -> None:
        saved = self.saved()
        for number in steps:
            path = saved[number]
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
