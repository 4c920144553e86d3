"""What a sentence encoder costs: parameters, operations and the activations that its backward pass needs.

A BERT-like encoder of `layers` layers, `hidden` wide, with a feed-forward part of four times the width:

    weights of a layer      12 hidden^2                      attention 4, feed-forward 8
    forward of one token    24 layers hidden^2 + 4 layers hidden length
    activations of a token  34 layers hidden bytes in 16 bits, twice that in 32

The last is Korthikanti et al., arXiv:2205.05198, equation 2, without the attention matrix, which fused attention does
not keep; autograd keeps 1.09 times that of BERT in float32, as a test measures. A backward pass costs two forward
passes.
"""

from __future__ import annotations

from dataclasses import dataclass

ACTIVATION_BYTES = 34  # for each token, layer and unit of width, in 16 bits
# Bytes for each parameter: float32 weight, gradient, and AdamW's two moments; mixed precision keeps a 16-bit copy.
TRAINED_BYTES = 4 + 4 + 8
COPY_BYTES = 2
# Bytes that AdamW moves for each parameter: weight and moments read and written, gradient read.
OPTIMIZER_TRAFFIC = 8 + 16 + 4


@dataclass(frozen=True)
class Encoder:
    """A model by its sizes; `parameters` counts all of them, embeddings too.

    Example:
        >>> f"{ENCODERS['bert-base'].parameters:,}"
        '109,482,240'
        >>> f"{ENCODERS['bert-base'].flops(tokens=32):.2e}"
        '5.47e+09'
    """

    name: str
    layers: int
    hidden: int
    parameters: int

    def flops(self, tokens: int) -> float:
        """Operations of a forward pass over one text."""
        return tokens * self.layers * self.hidden * (24.0 * self.hidden + 4.0 * tokens)

    def activation_bytes(self, tokens: int, half: bool) -> float:
        """Bytes that the backward pass of one text needs."""
        return tokens * self.layers * self.hidden * ACTIVATION_BYTES * (1 if half else 2)

    def state_bytes(self, half: bool) -> float:
        """Bytes of weights, gradients and optimizer on every GPU."""
        return self.parameters * (TRAINED_BYTES + (COPY_BYTES if half else 0))


def of_parameters(parameters: int, dim: int) -> Encoder:
    """The encoder of that many parameters that is as wide as its embeddings, all of them in layers.

    Example:
        >>> of_parameters(7_000_000_000, 4096).layers
        35
    """
    return Encoder(f"{parameters:,} parameters", max(1, round(parameters / (12 * dim**2))), dim, parameters)


def _bert(name: str, layers: int, hidden: int) -> Encoder:
    """BERT's count: 30,522 words, 512 positions and 2 segments, then layers with biases and norms, and the pooler."""
    embeddings = (30_522 + 512 + 2 + 2) * hidden  # the last 2: the norm's scale and offset
    layer = 12 * hidden**2 + 13 * hidden
    return Encoder(name, layers, hidden, embeddings + layers * layer + hidden**2 + hidden)


ENCODERS = {
    "minilm": _bert("minilm", 6, 384),
    "minilm-l12": _bert("minilm-l12", 12, 384),
    "bert-base": _bert("bert-base", 12, 768),
    "bert-large": _bert("bert-large", 24, 1024),
}


def usual_encoder(dim: int | None) -> Encoder:
    """The model that one expects behind embeddings of this width; bert-base where none has it."""
    fitting = {384: "minilm", 1024: "bert-large"}
    return ENCODERS[fitting.get(dim, "bert-base")]
