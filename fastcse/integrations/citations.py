"""BibTeX of the objectives, for model cards."""


def _arxiv(key: str, title: str, author: str, year: int, number: str) -> str:
    fields = f"title={{{title}}}, author={{{author}}}, year={{{year}}}, eprint={{{number}}}, archivePrefix={{arXiv}}"
    return f"@misc{{{key},\n    {fields}\n}}\n"


INFONCE = _arxiv(
    "oord2018cpc", "Representation Learning with Contrastive Predictive Coding",
    "van den Oord, Aaron and Li, Yazhe and Vinyals, Oriol", 2018, "1807.03748",
)  # fmt: skip
GTE = _arxiv(
    "li2023gte", "Towards General Text Embeddings with Multi-stage Contrastive Learning",
    "Li, Zehan and Zhang, Xin and Zhang, Yanzhao and Long, Dingkun and Xie, Pengjun and Zhang, Meishan", 2023,
    "2308.03281",
)  # fmt: skip
JINA = _arxiv(
    "guenther2023jina2", "Jina Embeddings 2: 8192-Token General-Purpose Text Embeddings for Long Documents",
    "G{\\\"u}nther, Michael and others", 2023, "2310.19923",
)  # fmt: skip
GRADCACHE = _arxiv(
    "gao2021gradcache", "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
    "Gao, Luyu and Zhang, Yunyi and Han, Jiawei and Callan, Jamie", 2021, "2101.06983",
)  # fmt: skip
GIST = _arxiv(
    "solatorio2024gist", "GISTEmbed: Guided In-sample Selection of Training Negatives for Text Embedding Fine-tuning",
    "Solatorio, Aivin V.", 2024, "2402.16829",
)  # fmt: skip
