"""A real sentence encoder that fits in a test: BERT, two layers, random weights, WordPiece over letters."""

import string

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import BertConfig, BertModel, BertTokenizer

WORDS = ["the", "a", "of", "to", "and", "is", "in", "dog", "cat", "house", "tree", "river", "sun", "moon", "red"]
WORDS += ["blue", "green", "runs", "sleeps", "eats", "small", "big", "old", "new"]
WIDTH = 32


def write_tiny_encoder(folder, *, dropout=0.1, seed=0):
    """Save one below `folder` in sentence-transformers' format and return its path."""
    letters = [*string.ascii_lowercase, *string.digits, *".,!?'\"-"]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{x}" for x in letters), *WORDS]
    bert = folder / "bert"
    bert.mkdir(parents=True)
    (bert / "vocab.txt").write_text("\n".join(dict.fromkeys(vocabulary)) + "\n", encoding="utf-8")
    BertTokenizer.from_pretrained(str(bert), model_max_length=64).save_pretrained(bert)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(dict.fromkeys(vocabulary)), hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=64, hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    BertModel(config).save_pretrained(bert)
    path = folder / "encoder"
    modules = [Transformer(str(bert)), Pooling(WIDTH, "mean")]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(path))
    return str(path)


def sentences(count, *, seed=0, words=6):
    """Distinct sentences over WORDS."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    while len(made) < count:
        made[" ".join(WORDS[i] for i in torch.randint(len(WORDS), (words,), generator=generator))] = None
    return list(made)
