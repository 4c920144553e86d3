"""One training step of an encoder: every provider in a process of its own, its memory estimated before it is filled,
losses and gradients compared, memory and time measured (interleaved)."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..ops.dispatch import choose_backend
from ..options import option
from .cached_stage import SENTENCE_TRANSFORMERS, cached_loss
from .case import Case, Measurement, Metric, Result
from .measure import fill_times
from .memory import GIB, MIB, one_process, peak_memory, trim_heap
from .provider import Provider, named
from .timing import clock, interleave

OURS = "fastcse cached"
# Of the loss, absolute; and of the gradient's norm, relative: dropout off, weights the same, float32 throughout.
SAME_LOSS, SAME_NORM = 1e-4, 1e-3
Texts = list[dict[str, Any]]


@dataclass
class StepMeasurement(Measurement):
    """A provider of the step. `loss` and `gradient_norm` are without dropout and at the same weights: the loss of all
    pairs, the gradient of the first few."""

    sentences_s: float | None = None
    loss: float | None = None
    gradient_norm: float | None = None

    def rate(self, case: StepCase) -> None:
        """Each pair is two sentences."""
        self.sentences_s = 1e3 * 2 * case.n / self.ms


@dataclass(frozen=True)
class StepCase(Case):
    """N sentences, each an anchor and its own positive: 2 N are encoded. `texts` is a file with one a line, `corpus`
    names their source.

    Those that cache gradients encode `mini_batch` at once; the others a column at once, and run only where a step is
    expected to take at most `memory_limit` bytes.
    """

    n: int = option(help="Pairs of a step.", least=1, several="64,512,2048,8192", flag="--batch-sizes")
    texts: str = ""
    corpus: str = ""
    mini_batch: int = option(64, "Encoded at once.", least=1, several=True, flag="--mini-batch-size")
    model: str = option("minilm", "minilm, a folder, or a name on the hub.", metavar="NAME")
    max_length: int = option(32, "Tokens that a sentence is cut to.", least=1)
    memory_limit: int = 4 << 30
    device: str = option("cpu", "cpu or cuda.", metavar="NAME", shown="a GPU if there is one")
    temperature: float = 0.05
    seed: int = option(0, "Seed of the rows.")

    row = StepMeasurement
    metrics = (
        Metric("sentences_s", "sent.\n/ s", ".1f"),
        Metric("loss", "loss", ".6f"),
        Metric("gradient_norm", "grad.\nnorm", ".5g"),
    )
    panels = (("sentences_s", "sentences a second"), ("extra_mib", "MiB of a step at its peak"))
    legend = (
        "MiB: peak of a step beyond model, optimiser and texts; loss: of the whole batch, grad. norm: over the first "
        "few pairs, both without dropout."
    )
    axes = ("n", "mini_batch", "model")
    sizes = (("N", "n"), ("mini-batch", "mini_batch"))
    lower_bound_name = ours = OURS
    always = (OURS,)
    operations = ("training step",)
    operation = "training step"
    mode = "full"
    labelled = ("operation", "m", "dtype", "mode")
    unlabelled = ("texts",)

    @property
    def setting(self) -> str:
        return f"{self.model}, at most {self.max_length} tokens, {self.dtype} on {self.device}, {self.corpus}"

    def measure(self, providers: Iterable[Provider], *, repeat: int, step: Callable[[str], None]) -> Result:
        """All of one case. `step` is called with what was just done: twice per provider, and once per timed step.

        Raises WrongAnswer, before anything is timed, where a loss or a gradient is not that of the others.
        """
        result = Result(self, repeat, choose_backend(torch.empty(0, device=self.device), None))
        with contextlib.ExitStack() as stack:
            workers = []
            for provider in providers:
                row = StepMeasurement(provider.name, note=provider.note)
                result.rows.append(row)
                if (missing := provider.missing()) is not None:
                    row.status, row.reason = "absent", missing
                    continue
                workers.append(stack.enter_context(Worker(self, provider, row)))
                _verify(workers[-1])
                step(provider.name)
            result.check()
            for worker in workers:
                worker.row.extra_mib = worker.call("peak_mib")
                step("memory")
            runs = {worker.row.provider: functools.partial(worker.call, "seconds") for worker in workers}
            seconds = interleave(runs, lambda run: run(), repeat, lambda: step("time"))
            result.check()  # it may have failed since
            fill_times(result, seconds)
        return result

    def fault(self, ours: StepMeasurement, result: Result) -> str | None:
        for name, row in result.measured.items():
            if not abs(row.loss - ours.loss) <= SAME_LOSS:
                found = f"the loss of {name} is {row.loss:.6f} and that of {OURS} {ours.loss:.6f}"
                return f"{found}, expected a difference of at most {SAME_LOSS:g}"
            if not math.isclose(row.gradient_norm, ours.gradient_norm, rel_tol=SAME_NORM):
                found = f"the gradient of {name} has norm {row.gradient_norm:.6g} and that of {OURS}"
                return f"{found} {ours.gradient_norm:.6g}, expected the same to {SAME_NORM:g}"
        return None


def _fastcse_cached(case: StepCase, model: nn.Module) -> nn.Module:
    return cached_loss(False, model, case.mini_batch, case.temperature)


def _theirs_cached(case: StepCase, model: nn.Module) -> nn.Module:
    return cached_loss(True, model, case.mini_batch, case.temperature)


def _fastcse_plain(case: StepCase, model: nn.Module) -> nn.Module:
    from ..integrations.sentence_transformers import FusedContrastiveLoss
    from ..losses.infonce import infonce_loss

    return FusedContrastiveLoss(model, infonce_loss, temperature=case.temperature)


def _theirs_plain(case: StepCase, model: nn.Module) -> nn.Module:
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    return MultipleNegativesRankingLoss(model, scale=1 / case.temperature)


CACHED = named(
    Provider(OURS, _fastcse_cached, *SENTENCE_TRANSFORMERS, "CachedFusedContrastiveLoss around infonce_loss"),
    Provider("sentence-transformers cached", _theirs_cached, *SENTENCE_TRANSFORMERS,
             "CachedMultipleNegativesRankingLoss"),
)  # fmt: skip
PLAIN = named(
    Provider("fastcse plain", _fastcse_plain, *SENTENCE_TRANSFORMERS, "FusedContrastiveLoss around infonce_loss"),
    Provider("sentence-transformers plain", _theirs_plain, *SENTENCE_TRANSFORMERS, "MultipleNegativesRankingLoss"),
)
PROVIDERS = CACHED | PLAIN


class Worker(contextlib.AbstractContextManager):
    """A process with one provider. What fails in it is written into its row, and it is not called any more."""

    def __init__(self, case: StepCase, provider: Provider, row: StepMeasurement):
        self.case, self.provider, self.row = case, provider, row
        self.process = one_process()

    def __exit__(self, *failure) -> None:
        self.process.shutdown()

    def call(self, what: str) -> float | None:
        """What a method of `Stepper` returns there; None where it failed, now or before."""
        if self.row.status != "measured":
            return None
        future = self.process.submit(call_stepper, self.case, self.provider, what)
        why = future.exception()
        if isinstance(why, InputError):
            raise why
        if why is None:
            return future.result()
        self.row.status, self.row.reason = "failed", " ".join(f"{type(why).__name__}: {why}".split())[:200]
        return None


def _verify(worker: Worker) -> None:
    """Norm of the gradient and loss; or the row says that the memory would not do."""
    row, case = worker.row, worker.case
    row.gradient_norm = worker.call("warm_up")
    if row.provider not in CACHED and case.n > 2 * case.mini_batch and row.status == "measured":
        estimated = worker.call("estimated_mib")
        if row.status == "measured" and (estimated is None or estimated * MIB > case.memory_limit):
            expected = "unknown" if estimated is None else f"about {estimated * MIB / GIB:.1f} GiB"
            row.status = "unsuitable"
            row.reason = f"N = {case.n}: memory {expected}, limit {case.memory_limit / GIB:.1f} GiB"
    row.loss = worker.call("check")


class Stepper:
    """One encoder with its loss and its optimiser. A step of rate 0 is the same arithmetic, and every step of every
    provider starts where the first one did: their losses can be compared."""

    LEARNING_RATE = 0.0

    def __init__(self, case: StepCase, provider: Provider):
        # Here, because the other operations are measured without any of these.
        from transformers.utils import logging

        from ..training.encoders import load_encoder

        logging.disable_progress_bar()
        self.case = case
        self.model = load_encoder(case.model).to(case.device).train()
        self.loss = provider.build(case, self.model).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=self.LEARNING_RATE)
        self.texts = self._texts(case.n)
        self.peak_memory = peak_memory(case.device)

    def _texts(self, count: int) -> Texts:
        """The first `count` texts tokenized, as two columns of the same."""
        with Path(self.case.texts).open(encoding="utf-8") as file:
            texts = [line.rstrip("\n") for line in itertools.islice(file, count)]
        if len(texts) < count:
            raise ValueError(f"n is {count}, and {self.case.texts!r} has {len(texts)} lines: expected as many")
        made = self.model.preprocess(texts, max_length=self.case.max_length)
        one = {name: x.to(self.case.device) if isinstance(x, Tensor) else x for name, x in made.items()}
        return [one, dict(one)]

    def warm_up(self) -> float:
        """A small step without dropout: what is loaded, compiled and allocated once, and the optimiser's moments. The
        norm of its gradient."""
        # More than a mini-batch, so that a cached loss has something to join.
        few = self._texts(min(self.case.n, self.case.mini_batch + 1))
        self.model.eval()
        self._step(few)
        self.model.train()
        gradients = [p.grad.norm() for p in self.model.parameters() if p.grad is not None]
        return torch.stack(gradients).norm().item()

    def estimated_mib(self) -> float | None:
        """Peak memory of a step of all pairs, on the line through two small ones; None if the system does not report
        memory. Beside the encoder's activations an (N, N) matrix counts for little."""
        small, large = (min(self.case.n, k * self.case.mini_batch) for k in (1, 2))
        taken = [self.peak_memory(functools.partial(self._step, self._texts(count))) for count in (small, large)]
        if None in taken:
            return None
        slope = max(0.0, (taken[1] - taken[0]) / max(1, large - small))
        return (taken[1] + slope * (self.case.n - large)) / MIB

    def check(self) -> float:
        """The loss of all pairs, as a step computes it, without dropout."""
        self.model.eval()
        loss = self._value(self.texts).item()
        self.model.train()
        trim_heap()
        return loss

    def peak_mib(self) -> float | None:
        """Memory of a whole step at its peak, beyond the model's, the optimiser's and the texts'."""
        self.optimizer.zero_grad()
        taken = self.peak_memory(functools.partial(self._step, self.texts))
        return None if taken is None else max(0.0, taken / MIB)

    def seconds(self) -> float:
        """Of a whole step."""
        taken = clock(self.case.device)(functools.partial(self._step, self.texts))
        # The other processes are timed meanwhile.
        trim_heap()
        return taken

    def _step(self, texts: Texts) -> None:
        self.optimizer.zero_grad()
        self._value(texts).backward()
        self.optimizer.step()

    def _value(self, texts: Texts) -> Tensor:
        # Copies, because the modules of a model write into what they are given.
        return self.loss([dict(column) for column in texts], None)


stepper = functools.cache(Stepper)  # the one of this process


def call_stepper(case: StepCase, provider: Provider, what: str) -> float | None:
    """The call that a worker process makes: a method of its `Stepper`, by name."""
    return getattr(stepper(case, provider), what)()
