"""Mining: hard negatives for the queries of a training set, chosen among the rows of a corpus."""

from ..moved import keep_paths

keep_paths(
    __name__,
    {
        "approximate": "fastcse.retrieval.faiss_index",
        "blocks": "fastcse.retrieval.exact",
        "encoding": "fastcse.encoding",
        "index": "fastcse.retrieval.index",
        "sharded_bank": "fastcse.retrieval.sharded",
        "shards": "fastcse.retrieval.sharded",
    },
    {"ShardedBank": "ShardedIndex"},
)
