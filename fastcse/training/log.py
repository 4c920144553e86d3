"""The log of a run as a file: one JSON object a line."""

from __future__ import annotations

import json
import os
from pathlib import Path

from transformers import TrainerCallback

LOG_FILE = "log.jsonl"


class JsonLog(TrainerCallback):
    """Appends every entry of the log, losses and scores with their step, to `log.jsonl` in the output folder. A resumed
    run first takes off the entries of the steps that it makes again."""

    def __init__(self, output_dir: str | Path):
        self.path = Path(output_dir) / LOG_FILE

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        kept = [line for line in self._lines() if _step(line) <= state.global_step]
        part = self.path.with_name(f".{self.path.name}.part")
        part.write_text("".join(kept), encoding="utf-8")
        os.replace(part, self.path)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, **logs}) + "\n")

    def _lines(self) -> list[str]:
        if not self.path.is_file():
            return []
        return self.path.read_text(encoding="utf-8").splitlines(keepends=True)


def _step(line: str) -> float:
    """The step of an entry; of one that a killed process did not end, later than any."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
