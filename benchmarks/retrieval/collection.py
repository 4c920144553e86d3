"""Queries, documents and judgements as published: gzip'd tables with one header row and no quoting."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from fastcse.files import read_lines


class Collection(NamedTuple):
    """`corpus` and `queries` are id -> text; `relevant` is query id -> ids of its relevant documents, in file order."""

    corpus: dict[str, str]
    queries: dict[str, str]
    relevant: dict[str, list[str]]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Every (query id, relevant document's id)."""
        return [(query, document) for query, documents in self.relevant.items() for document in documents]


def read_scifact(folder: Path, split: str) -> Collection:
    """The 5,183 abstracts, title and text, with the claims of one split."""
    corpus = {row["doc_id"]: f"{row['title']} {row['text']}".strip() for row in _rows(folder / "scifact.corpus.tsv.gz")}
    asked, judged = (
        [row for row in _rows(folder / f"scifact.{name}.tsv.gz") if row["split"] == split]
        for name in ("queries", "qrels")
    )
    return Collection(corpus, {row["query_id"]: row["text"] for row in asked}, _relevant(judged))


def read_vaswani(folder: Path) -> Collection:
    """The NPL collection; the queries, published in capitals, in small letters like the documents."""
    corpus = {row["doc_id"]: row["text"] for row in _rows(folder / "vaswani.corpus.tsv.gz")}
    queries = {row["query_id"]: row["text"].lower() for row in _rows(folder / "vaswani.queries.tsv.gz")}
    return Collection(corpus, queries, _relevant(_rows(folder / "vaswani.qrels.tsv.gz")))


def _relevant(judged: list[dict[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in judged:
        if int(row["relevance"]) > 0:
            found.setdefault(row["query_id"], []).append(row["doc_id"])
    return found


def _rows(path: Path) -> list[dict[str, str]]:
    header, *lines = (line.split("\t") for line in read_lines(path, "--data"))
    return [dict(zip(header, line, strict=True)) for line in lines]
