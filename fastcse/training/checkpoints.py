"""Checkpoints of a run: which one to resume from, whether this run wrote it, and the state of its parts in it."""

from __future__ import annotations

import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from ..errors import InputError, OptionError
from ..files import check_same_run, read_json, write_json
from .options import TrainOptions

OPTIONS_FILE = "fastcse_train.json"
VERSION = 2  # of that file and of what lies in a checkpoint; 1 wrote no version
STEP = re.compile(r"checkpoint-(\d+)")
# The Trainer writes this file last, so a folder without it is what a killed process left behind.
LAST_WRITTEN = "trainer_state.json"
# Any of these says that a folder holds a model.
MODEL_FILES = ("modules.json", "config.json", "adapter_config.json", "model.safetensors", "pytorch_model.bin")


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint, or -1 for another folder."""
    found = STEP.fullmatch(checkpoint.name)
    return int(found[1]) if found else -1


def last_checkpoint(output_dir: str | Path) -> Path | None:
    """The checkpoint with the highest step that was written to its end, or None."""
    found = [path.parent for path in Path(output_dir).glob(f"checkpoint-*/{LAST_WRITTEN}")]
    complete = [path for path in found if step_of(path) >= 0 and read_json(path / LAST_WRITTEN) is not None]
    return max(complete, key=step_of, default=None)


def prepare_output(options: TrainOptions) -> Path | None:
    """Make the output folder, write the options into it, and return the checkpoint to resume from, if any.

    Raises:
        InputError: resuming without a checkpoint or under other options than the first run's, or starting anew in a
            folder that holds a model or checkpoints, without `overwrite`; or the folder is that of the model itself.
    """
    folder, name = Path(options.output_dir), f" {options.output_dir!r}"
    if folder.exists() and folder.resolve() == Path(options.model).resolve():
        raise OptionError("output_dir", f"{name} is the folder of ", "model", ": it would be lost")
    checkpoint = last_checkpoint(folder)
    made_by = {"processes": PartialState().num_processes, "version": VERSION}
    if options.resume:
        if checkpoint is None:
            raise OptionError("resume", " found no complete checkpoint in ", "output_dir", name)
        _check_same_run(folder, options, made_by)
        return checkpoint
    if not options.overwrite:
        more = ("overwrite", " to replace it, or name another folder")
        if checkpoint is not None:
            held = f"{name} holds {checkpoint.name} of an earlier run: add "
            raise OptionError("output_dir", held, "resume", " to continue it, ", *more)
        if any((folder / file).is_file() for file in MODEL_FILES):
            raise OptionError("output_dir", f"{name} holds a model: add ", *more)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("checkpoint-*"):  # a later --resume must not find those of the run before
            if step_of(path) >= 0:
                shutil.rmtree(path)
        write_json(folder / OPTIONS_FILE, {**options.identity(), **made_by})
    except OSError as error:
        raise OptionError("output_dir", f"{name} cannot be written: {error.strerror}") from None
    return None


def _check_same_run(folder: Path, options: TrainOptions, made_by: dict[str, int]) -> None:
    path = folder / OPTIONS_FILE
    if not path.is_file():
        none = f" found no {OPTIONS_FILE} in "
        raise OptionError("resume", none, "output_dir", f" {str(folder)!r}: not a fastcse run")
    earlier = read_json(path)
    if not isinstance(earlier, dict):
        raise OptionError("resume", f" cannot read {str(path)!r}: not the JSON that a run writes")
    if earlier.get("version") != VERSION:
        old = f" {str(folder)!r}: an earlier version of fastcse wrote it, which kept its state beside the checkpoints"
        raise OptionError("resume", " cannot continue the run of ", "output_dir", old)
    if earlier.get("processes") != made_by["processes"]:
        now = f"the run has {made_by['processes']} processes"
        raise InputError(f"{now}, but the run that --resume continues had {earlier.get('processes')}")
    check_same_run(earlier, options.identity(), "the run that --resume continues")


def save_state(part: Any, path: Path) -> None:
    """Write the state_dict of a part that all processes hold alike; the first one does."""
    if PartialState().is_main_process:
        torch.save(part.state_dict(), path)


def load_state(part: Any, path: Path) -> None:
    """Continue with a state that `save_state` wrote.

    Raises:
        InputError: it is not there or not whole.
    """
    try:
        part.load_state_dict(torch.load(path, weights_only=True))
    except (OSError, EOFError, KeyError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise OptionError("resume", f" cannot read {str(path)!r}: {reason}") from None


def link_folder(source: Path, target: Path) -> None:
    """The same files in another folder, by hard links where the disk has them: an old checkpoint that is removed takes
    nothing from a new one, and what has not changed is stored once."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
