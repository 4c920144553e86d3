"""Checkpoints of a run: which one to resume from, and whether this run is the one that wrote them."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

from ..errors import InputError
from .options import DIGEST, TrainOptions, flag

OPTIONS_FILE = "fastcse_train.json"
RANKS = "processes"  # in that file
STEP = re.compile(r"checkpoint-\d+")
# The Trainer writes this file last, so a folder without it is what a killed process left behind.
LAST_WRITTEN = "trainer_state.json"
# Any of these says that a folder holds a model.
MODEL_FILES = ("modules.json", "config.json", "adapter_config.json", "model.safetensors", "pytorch_model.bin")


def last_checkpoint(output_dir: str | Path) -> Path | None:
    """The checkpoint with the highest step that was written to its end, or None."""
    found = [path for path in Path(output_dir).glob(f"checkpoint-*/{LAST_WRITTEN}") if STEP.fullmatch(path.parent.name)]
    complete = [path.parent for path in found if _is_json(path)]
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True


def prepare_output(options: TrainOptions, ranks: int = 1) -> Path | None:
    """Make the output folder, write the options into it, and return the checkpoint to resume from, if any.

    Raises:
        InputError: resuming without a checkpoint or under other options than the first run's, or starting anew in a
            folder that holds a model or checkpoints, without `overwrite`; or the folder is that of the model itself.
    """
    folder = Path(options.output_dir)
    if folder.exists() and folder.resolve() == Path(options.model).resolve():
        raise InputError(f"--output-dir {options.output_dir!r} is the folder of --model: it would be lost")
    checkpoint = last_checkpoint(folder)
    if options.resume:
        if checkpoint is None:
            raise InputError(f"--resume found no complete checkpoint in --output-dir {options.output_dir!r}")
        _check_same_run(folder / OPTIONS_FILE, options, ranks)
    elif not options.overwrite:
        _check_empty(folder, checkpoint)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not options.resume:
            for path in folder.glob("checkpoint-*"):  # a later --resume must not find those of the run before
                if STEP.fullmatch(path.name):
                    shutil.rmtree(path)
            # Whole or not at all: without it no run can be resumed.
            part = folder / f".{OPTIONS_FILE}.part"
            part.write_text(json.dumps({**options.identity(), RANKS: ranks}, indent=2) + "\n", encoding="utf-8")
            os.replace(part, folder / OPTIONS_FILE)
    except OSError as error:
        raise InputError(f"--output-dir {options.output_dir!r} cannot be written: {error.strerror}") from None
    return checkpoint if options.resume else None


def _check_empty(folder: Path, checkpoint: Path | None) -> None:
    """An InputError if the folder holds checkpoints or a model."""
    if checkpoint is not None:
        raise InputError(
            f"--output-dir {str(folder)!r} holds {checkpoint.name} of an earlier run: add --resume to continue it, "
            "--overwrite to replace it, or name another folder"
        )
    if any((folder / name).is_file() for name in MODEL_FILES):
        raise InputError(
            f"--output-dir {str(folder)!r} holds a model: add --overwrite to replace it, or name another folder"
        )


def _check_same_run(path: Path, options: TrainOptions, ranks: int) -> None:
    if not path.is_file():
        raise InputError(f"--resume found no {OPTIONS_FILE} in --output-dir {options.output_dir!r}: not a fastcse run")
    try:
        first, now = json.loads(path.read_text(encoding="utf-8")), options.identity()
    except ValueError:
        raise InputError(f"--resume cannot read {str(path)!r}: not the JSON that a run writes") from None
    if first.get(RANKS, ranks) != ranks:
        raise InputError(f"the run has {ranks} processes, but the run that --resume continues had {first[RANKS]}")
    for name, value in now.items():
        if first.get(name) != value:
            option = name.removesuffix(DIGEST)
            what = flag(name) if option == name else f"the sha256 of {flag(option)} {now[option]!r}"
            raise InputError(f"{what} is {value!r}, but the run that --resume continues had {first.get(name)!r}")
