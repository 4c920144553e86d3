"""Layers that a sentence encoder has in training only: the papers' heads, and the vectors of intermediate layers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Module
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch import Tensor, nn

from ..options import HEADS as KINDS

EMBEDDING = "sentence_embedding"
WEIGHT_SCALE = 0.02  # BERT's, which the papers' code starts its heads with


class TrainingHead(Module):
    r"""A head over sentence embeddings in training mode; in evaluation mode the embedding passes as it is.

        tanh:      z = tanh(W e + b)                                      (SimCSE)
        batchnorm: z = norm(W2 relu(norm(W1 e) g + b))                    (DiffCSE; W1 is (2 dim, dim), W2 (dim, 2 dim))

    with norm the batch normalisation. Its statistics are those of the rows of one forward pass: under gradient caching
    they are of a chunk and not of the batch, and of a process and not of all.

    Args:
        kind: "tanh" | "batchnorm".
        dim:  width of the embeddings, kept.

    Raises:
        ValueError: an unknown kind, or dim < 1.

    Source: princeton-nlp/SimCSE, simcse/models.py; voidism/DiffCSE, diffcse/models.py.

    Example:
        >>> head, e = TrainingHead("tanh", 4), torch.ones(2, 4)
        >>> bool((head.eval()({"sentence_embedding": e})["sentence_embedding"] == e).all())
        True
        >>> head.train()({"sentence_embedding": e})["sentence_embedding"].abs().max().item() < 1
        True
    """

    config_keys = ["kind", "dim"]  # noqa: RUF012 (sentence-transformers' own declaration)

    def __init__(self, kind: str, dim: int):
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        self.kind, self.dim = kind, dim
        self.layers = nn.Sequential(*_layers(kind, dim))
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=WEIGHT_SCALE)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, features: dict[str, Any], **kwargs) -> dict[str, Any]:
        """`features` with its sentence_embedding (N, dim) changed in training mode."""
        if self.training:
            features[EMBEDDING] = self.layers(features[EMBEDDING])
        return features

    def save(self, output_path: str, *args, safe_serialization: bool = True, **kwargs) -> None:
        """Configuration and weights, so that a checkpoint of a run goes on with its head."""
        self.save_config(output_path)
        self.save_torch_weights(output_path, safe_serialization=safe_serialization)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs) -> TrainingHead:
        """A saved head."""
        place = _place(kwargs)
        head = cls(**cls.load_config(model_name_or_path, subfolder, **place))
        return cls.load_torch_weights(model_name_or_path, subfolder, model=head, **place)


def _layers(kind: str, dim: int) -> list[nn.Module]:
    if kind == "tanh":
        return [nn.Linear(dim, dim), nn.Tanh()]
    return [
        nn.Linear(dim, 2 * dim, bias=False),
        nn.BatchNorm1d(2 * dim),
        nn.ReLU(),
        nn.Linear(2 * dim, dim, bias=False),
        nn.BatchNorm1d(dim, affine=False),
    ]


class IntermediateLayers(Module):
    """In training mode, the vectors of earlier layers behind the sentence's own: (N, (1 + layers) D) embeddings
    [final, layer -2, layer -3, ...]; in evaluation mode the embedding passes as it is.

    The hidden states are pooled as the model pools. All parts are one column: gradient caching, gathering over
    processes and two dropout views work as with any embedding, and `fastcse.sscl_loss` takes them apart.

    Args:
        layers:  how many, from the last but one down; the layer before the first is that of the word vectors.
        pooling: of the model; copied.

    Raises:
        ValueError: layers < 1; in a forward pass, a model that gives no hidden states, or fewer, or of another width.

    Source: Chen et al. (SSCL), ACL 2023, github.com/nuochenpku/SSCL.
    """

    def __init__(self, layers: int, pooling: Pooling):
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers must be at least 1, got {layers}")
        self.layers, self.pooling = layers, copy.deepcopy(pooling)

    def forward(self, features: dict[str, Any], **kwargs) -> dict[str, Any]:
        """`features` with the parts of its sentence_embedding side by side, in training mode."""
        if not self.training:
            return features
        hidden = features.get("all_layer_embeddings")
        if hidden is None or len(hidden) <= self.layers:
            got = "none" if hidden is None else f"{len(hidden) - 1} before the last"
            raise ValueError(f"layers={self.layers} needs as many hidden states before the last one, got {got}")
        parts = [features[EMBEDDING], *(self._pooled(features, hidden[-k]) for k in range(2, self.layers + 2))]
        widths = {part.shape[1] for part in parts}
        if len(widths) > 1:
            raise ValueError(
                f"all layers must have one width, got {sorted(widths)}: a layer behind the pooling changes it"
            )
        features[EMBEDDING] = torch.cat(parts, dim=1)
        return features

    def get_config_dict(self) -> dict[str, Any]:
        """How many layers, and the pooling's configuration."""
        return {"layers": self.layers, **self.pooling.get_config_dict()}

    def _pooled(self, features: dict[str, Any], hidden: Tensor) -> Tensor:
        return self.pooling({**features, "token_embeddings": hidden})[EMBEDDING]

    def save(self, output_path: str, *args, safe_serialization: bool = True, **kwargs) -> None:
        """The configuration alone: there are no weights."""
        self.save_config(output_path)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs) -> IntermediateLayers:
        """A saved one."""
        config = cls.load_config(model_name_or_path, subfolder, **_place(kwargs))
        return cls(config.pop("layers"), Pooling(**config))


def _place(given: dict[str, Any]) -> dict[str, Any]:
    """Of the arguments of a load, those that say where the files are."""
    return {k: v for k, v in given.items() if k in ("token", "cache_folder", "revision", "local_files_only")}


def append_head(model: SentenceTransformer, kind: str) -> TrainingHead:
    """Put a `TrainingHead` behind the last module of `model`, on its device and in its type, and return it."""
    head = TrainingHead(kind, model.get_embedding_dimension())
    like = next(model.parameters())
    model.append(head.to(like.device, like.dtype).train(model.training))
    return head


def append_intermediate_layers(model: SentenceTransformer, layers: int = 2) -> IntermediateLayers:
    """Let the transformer of `model` give its hidden states, put `IntermediateLayers` behind the last module, and
    return it.

    Raises:
        ValueError: a model without a transformer or a pooling layer.
    """
    modules = list(model)
    pooling = next((module for module in modules if isinstance(module, Pooling)), None)
    if pooling is None or not isinstance(modules[0], Transformer):
        names = ", ".join(type(module).__name__ for module in modules)
        raise ValueError(f"intermediate layers need a model of a transformer and a pooling layer, got {names}")
    made = IntermediateLayers(layers, pooling)
    modules[0].model.config.output_hidden_states = True
    model.append(made.train(model.training))
    return made


def strip_training_layers(model: SentenceTransformer) -> list[Module]:
    """Take every `TrainingHead` and `IntermediateLayers` off `model`, before it is saved, and return them in order."""
    places = [i for i, module in enumerate(model) if isinstance(module, TrainingHead | IntermediateLayers)]
    taken = [model[i] for i in places]
    for i in reversed(places):
        del model[i]
    if any(isinstance(module, IntermediateLayers) for module in taken):
        model[0].model.config.output_hidden_states = False
    return taken
