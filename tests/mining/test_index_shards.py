"""A corpus over the ranks of torch.distributed: real processes, gloo, compared with one index over everything."""

import re

import pytest
import torch
import torch.distributed as dist
from ranks import together

from fastcse import CorpusIndex
from fastcse.retrieval import sharded
from fastcse.retrieval.sharded import ShardedIndex

SEED = 20231018


def parts_of(ids, ranks):
    """Uneven parts of the corpus: rank 0 has two rows, the others the rest in turns."""
    return [ids[:2], *(ids[2 + rank :: ranks - 1] for rank in range(ranks - 1))]


def corpus(dtype=torch.float32):
    """Rows of small whole numbers, where ties are many, and ids in no order."""
    torch.manual_seed(SEED)
    return torch.randint(-2, 3, (61, 4)).to(dtype), torch.randperm(900)[:61]


def queries(rank):
    """This rank's queries, and ids to leave out; none on rank 1."""
    torch.manual_seed(SEED + 1 + rank)
    n = (5, 0, 9)[rank]
    exclude = corpus()[1][torch.randint(61, (n, 2 + rank))]
    return torch.randint(-2, 3, (n, 4)).float(), exclude


def same_as_one_index(rank, ranks, metric, dtype, kind):
    rows, ids = corpus(dtype)
    mine = parts_of(torch.arange(61), ranks)[rank]
    options = {"block_bytes": 99} if kind == "exact" else {}
    index = ShardedIndex(CorpusIndex(rows[mine], ids=ids[mine], metric=metric, kind=kind, **options))
    assert len(index) == 61
    whole = CorpusIndex(rows, ids=ids, metric=metric)
    query, exclude = queries(rank)
    query = query.to(dtype)
    for k in (1, 7, 61):
        for options in (
            {},
            {"exclude_id": exclude[:, 0]},
            {"exclude_id": exclude},
            {"min_score": -0.5, "max_score": torch.linspace(0, 5, len(query))},
            {"exclude_id": exclude} if rank == 0 else {},
            {"exclude_id": exclude[:, :0]},
        ):
            got = index.search(query, k, **options)
            assert got.values.shape == got.indices.shape == (len(query), k)
            if len(query) == 0:
                continue
            expected = whole.search(query, k, **options)
            assert torch.equal(got.values, expected.values)
            assert got.values.dtype == expected.values.dtype
            if kind == "exact":
                assert torch.equal(got.indices, expected.indices)


def message_of(rank, ranks, act):
    """The error of a rank when something is wrong on another."""
    rows, ids = corpus()
    mine = parts_of(torch.arange(61), ranks)[rank]
    index = ShardedIndex(CorpusIndex(rows[mine], ids=ids[mine]))
    query = queries(0)[0]
    try:
        act(rank, index, query)
    except (ValueError, RuntimeError) as error:
        message = f"{type(error).__name__}: {error}"
    else:
        message = None
    # Whatever went wrong, the group is still in step.
    assert index.search(query, 3).indices.shape == (5, 3)
    return message


def _fails_on_one(rank, index, query):
    def failing(*_, **__):
        raise RuntimeError("out of memory")

    if rank == 1:
        index.local_index.search = failing
    try:
        index.search(query, 3)
    finally:
        index.local_index.__dict__.pop("search", None)


WIDTH = r"ValueError: rank 1: query must have rows of length 4 as the index has, got shape .*"
MISTAKES = [
    (lambda rank, index, query: index.search(query, 62),
     r"ValueError: rank 0: k must be a whole number from 1 to the 61 rows of the index, got 62; rank 1: .*"),
    (lambda rank, index, query: index.search(query, 3 + rank),
     r"ValueError: k must be the same on all ranks, got \[?3, 4, 5\]?"),
    (lambda rank, index, query: index.search(query[:, :3] if rank == 1 else query, 3), WIDTH),
    (lambda rank, index, query: index.search(query[:0, :3] if rank == 1 else query, 3), WIDTH),
    (lambda rank, index, query: index.search(query.half() if rank == 1 else query, 3),
     r"ValueError: .* must be .* on all ranks, got .*torch.float16.*"),
    (lambda rank, index, query: index.search(query, 3, exclude_id=torch.arange(4) if rank == 1 else None),
     r"ValueError: rank 1: exclude_id must have shape \(5,\) or \(5, E\), .* got \(4,\)"),
    (_fails_on_one, r"RuntimeError: rank 1: RuntimeError: out of memory"),
]  # fmt: skip
MADE_WRONG = [
    (lambda rank: CorpusIndex(torch.eye(4), ids=[[1, 2, 3, 4], [9, 8, 7, 3]][rank]),
     r"ids must be unique over all ranks, got 3 on rank 0 and another"),
    (lambda rank: CorpusIndex(torch.eye(4), ids=torch.arange(4) + 4 * rank, metric=["ip", "l2"][rank]),
     r"all parts must have one metric and length of rows, got rank 0: \('ip', 4\), rank 1: \('l2', 4\), .*"),
    (lambda rank: CorpusIndex(torch.eye(4 + rank)),
     r"all parts must have one metric and length of rows, got .*4\), rank 1: \('cosine', 5\), .*"),
    (lambda rank: None, r"all parts must have one metric and length of rows, got rank 0: None, .*"),
    (lambda rank: [CorpusIndex(torch.eye(4)), torch.eye(4)][rank],
     r"rank 1: local_index must be a CorpusIndex or None, got Tensor"),
]  # fmt: skip


def every_mistake(rank, ranks):
    return [message_of(rank, ranks, act) for act, _ in MISTAKES]


def made_wrong(rank, ranks):
    """The errors of parts that do not fit together; rank 2 has none."""
    told = []
    for part, _ in MADE_WRONG:
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            ShardedIndex(part(rank) if rank < 2 else None)
        told.append(str(caught.value))
    return told


def ids_in_many_messages(rank, ranks):
    sharded.IDS_PER_MESSAGE = 3
    ids = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    for again in (0, 1):
        mine = [ids[:31], torch.cat([ids[31:], ids[30 : 30 + again]]), None][rank]
        part = None if mine is None else CorpusIndex(torch.randn(len(mine), 3), ids=mine)
        if again:
            with pytest.raises(ValueError, match=f"ids must be unique over all ranks, got {int(ids[30])} on rank"):
                ShardedIndex(part)
        else:
            assert len(ShardedIndex(part)) == 50


def a_rank_without_rows(rank, ranks):
    rows = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    index = ShardedIndex(CorpusIndex(rows) if rank == 1 else None)
    got = index.search(rows[:2], 8)
    assert torch.equal(got.indices, CorpusIndex(rows).search(rows[:2], 8).indices)
    assert index.search(rows[:0], 2).indices.shape == (0, 2)


def a_group_of_some(rank, ranks):
    group = dist.new_group([1, 2])
    if rank == 0:
        return
    rows, ids = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.arange(8)
    mine = ids[rank - 1 :: 2]
    index = ShardedIndex(CorpusIndex(rows[mine], ids=mine), group)
    got = index.search(rows[mine].numpy(), 5)
    assert torch.equal(got.indices, CorpusIndex(rows).search(rows[mine], 5).indices)


SAME = [(same_as_one_index, metric, torch.float32, "exact") for metric in ("cosine", "ip", "l2")]
SAME += [(same_as_one_index, "ip", torch.bfloat16, "exact"), (same_as_one_index, "l2", torch.float64, "exact")]
SAME += [(same_as_one_index, "ip", torch.float32, "flat")]


@pytest.mark.whole
def test_two_ranks_give_what_one_index_gives(tmp_path):
    together(tmp_path, 2, SAME)


def test_three_ranks_give_what_one_index_gives_and_every_mistake_is_said_on_all(tmp_path):
    jobs = [(every_mistake,), (made_wrong,), *SAME, (a_group_of_some,), (a_rank_without_rows,), (ids_in_many_messages,)]
    first, *others = (answers[:2] for answers in together(tmp_path, 3, jobs))
    assert others == [first, first]
    for told, (_, expected) in zip([*first[0], *first[1]], [*MISTAKES, *MADE_WRONG], strict=True):
        assert re.fullmatch(expected, told), told
