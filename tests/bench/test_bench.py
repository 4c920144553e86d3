"""The measuring frame on an operation that takes no time, and its command: order, failures, verdicts, files."""

import json
import math
from dataclasses import dataclass

import pytest
import torch
import typer

from fastcse.bench import memory as memory_of
from fastcse.bench import output
from fastcse.bench.accuracy import Errors, Outcome, errors
from fastcse.bench.benchmarks import BENCHMARKS, Benchmark
from fastcse.bench.case import ArrayCase, Measurement, Metric, Result, WrongAnswer
from fastcse.bench.environment import environment
from fastcse.bench.measure import measure, rounds
from fastcse.bench.memory import MIB
from fastcse.bench.output import Document, draw, left_out, legend, read_results, result_table, write_results
from fastcse.bench.provider import Provider, need
from fastcse.bench.timing import Seconds, interleave
from fastcse.cli import bench as command
from fastcse.errors import InputError
from fastcse.options import option

FRAME = "fastcse.bench.measure"


@dataclass
class DoubleMeasurement(Measurement):
    error: float | None = None


@dataclass(frozen=True)
class DoubleCase(ArrayCase):
    """2 x."""

    n: int = option(4, "Numbers.", least=1, several=True)
    d: int = option(1, "Width.", least=1, several=True)

    row = DoubleMeasurement
    metrics = (Metric("error", "error", drawn="error"),)
    legend = "error: of the double."
    axes = ("n", "d", "data")
    operations = ("doubling",)
    operation = "doubling"
    setting = "of whole numbers"
    lower_bound_note = "nothing"
    m = 1000
    flops = 1e9

    def inputs(self):
        return (torch.arange(self.n),)

    def exact(self, x):
        return 2 * x

    def score(self, row, provider, outcome, exact):
        row.error = (outcome - exact).abs().max().item()

    def fault(self, ours, result):
        return None if ours.error == 0 else f"fastcse's error is {ours.error}"

    def lower_bound(self):
        return lambda x: None

    def output_bytes(self, inputs):
        return 2 * MIB


SMALL = DoubleCase()


def double(case, x):
    return lambda: 2 * x


OURS = Provider("fastcse", double)


def failing_after(calls, error=MemoryError):
    """A provider that computes so many times and then fails."""

    def make(case, x):
        left = [calls]

        def run():
            left[0] -= 1
            if left[0] < 0:
                raise error("planted [red]fault[/]")
            return 2 * x

        return run

    return make


def wrong(case, x):
    return lambda: 2 * x + 1


def lost(case, x):
    return lambda: torch.full((case.n,), torch.nan)


def measured(*providers, case=SMALL, repeat=1, memory=False, **more):
    return measure(case, providers, repeat=repeat, memory=memory, **more)


# Timing


def test_order_is_reversed_every_round():
    order = []
    runs = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds = interleave(runs, lambda run: run() or len(order), 2)
    assert "".join(order) == "abccba"
    assert seconds == {"a": [1, 6], "b": [2, 5], "c": [3, 4]}
    assert Seconds.of([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == (3.5, 2.0, 5.0)
    assert Seconds.of([7.0]) == (7.0, 7.0, 7.0)


def test_rounds_are_more_where_the_case_is_small():
    assert [rounds(DoubleCase(n), 3) for n in (4, 419, 2048**2)] == [200, 30, 3]


# Errors


def test_an_error_that_is_no_number_is_kept_and_pieces_add_up():
    right = Outcome(torch.tensor(2.0).double(), (torch.ones(4).double(), torch.zeros(4).double()))
    assert errors(right, right) == Errors(0.0, 0.0)
    assert errors(Outcome(torch.tensor(2.5)), Outcome(right.value)) == (0.25, None)
    for which in (0, 1):
        gradients = list(right.gradients)
        gradients[which] = gradients[which] * math.nan
        assert math.isnan(errors(right._replace(gradients=tuple(gradients)), right).gradient)
    halves = [(slice(0, 2), Outcome(torch.tensor(0.5), tuple(g[:2] for g in right.gradients))),
              (slice(2, 4), Outcome(torch.tensor(1.5), tuple(g[2:] for g in right.gradients)))]  # fmt: skip
    assert errors(right, halves) == (0.0, 0.0)
    assert errors(right._replace(gradients=(right.gradients[0] * 1.5, right.gradients[1])), halves).gradient == 0.5
    with pytest.raises(ValueError, match="zip"):
        errors(right._replace(gradients=right.gradients[:1]), right)


# One case


def test_rows_are_whole_and_the_lower_bound_is_the_first():
    done = []
    result = measured(OURS, Provider("torch", double, note="by hand"), repeat=3, step=done.append)
    assert [row.provider for row in result.rows] == ["bare products", "fastcse", "torch"]
    assert result.rows[0].to_products == 1.0
    for row in result.rows:
        assert row.ms_20 <= row.ms <= row.ms_80
        assert row.tflops == pytest.approx(1 / row.ms)
        assert row.to_products == pytest.approx(row.ms / result.rows[0].ms)
    assert result.row("torch").note == "by hand"
    # Each provider once, each of the three once a round, each row's memory once.
    assert (done[:2], done.count("time"), done.count("memory")) == (["fastcse", "torch"], 9, 3)


@pytest.mark.parametrize(("calls", "timed"), [(0, False), (2, False), (100, True)])
def test_a_peer_that_fails_is_listed_and_the_others_are_measured(calls, timed):
    result = measured(OURS, Provider("planted", failing_after(calls)), Provider("torch", double), repeat=4)
    row = result.row("planted")
    assert (row.status == "measured") == timed
    if not timed:
        assert (row.status, row.reason, row.ms) == ("failed", "MemoryError: planted [red]fault[/]", None)
    assert all(result.row(name).ms > 0 for name in ("bare products", "fastcse", "torch"))


def test_who_cannot_run_says_why():
    def narrow(case, x):
        need(case.d == 2, "needs width 2")

    result = measured(
        Provider("absent", double, modules=("torch", "no_such_library"), install="pip install nothing"),
        Provider("lacking", double, lacks=lambda: "has no GPU part"),
        Provider("another", double, variants=("sum", "mean")),
        Provider("narrow", narrow),
    )
    assert {row.provider: (row.status, row.reason) for row in result.rows[1:]} == {
        "absent": ("absent", "no_such_library is not installed: pip install nothing"),
        "lacking": ("absent", "has no GPU part"),
        "another": ("unsuitable", "computes sum and mean, not None"),
        "narrow": ("unsuitable", "needs width 2"),
    }
    assert list(left_out([result])["absent", "has no GPU part"]) == ["lacking"]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (failing_after(0), r"fastcse failed at doubling, N = 4, D = 1, of whole numbers: MemoryError"),
        (failing_after(3), r"fastcse failed at"),
        (wrong, r"fastcse's error is 1, at doubling, .*: nothing is reported; run the tests"),
        (lost, r"fastcse's error is nan, at"),
    ],
)
def test_fastcse_may_not_fail_or_be_wrong(make, says):
    with pytest.raises(WrongAnswer, match=says):
        measured(Provider("fastcse", make), Provider("torch", double), repeat=6)


def test_the_fastest_configuration_is_the_one_that_is_reported():
    seen = []

    def make(case, x, config):
        return lambda: seen.append(config) or 2 * x

    row = measured(Provider("chunked", make, configs=(8, 16))).row("chunked")
    assert row.choice in (8, 16)
    assert seen[:4] == [8, 8, 16, 16]
    assert set(seen[4:]) == {row.choice}


# Memory


def test_memory_is_what_lies_beyond_inputs_and_outputs(monkeypatch):
    monkeypatch.setattr(memory_of, "peak_memory", lambda device: lambda run: run() or 5 * MIB)
    assert memory_of._extra_memory(SMALL, OURS, None) == 3.0
    assert memory_of._extra_memory(SMALL, None, None) == 5.0
    monkeypatch.setattr(memory_of, "peak_memory", lambda device: lambda run: None)
    assert memory_of._extra_memory(SMALL, OURS, None) is None


def test_a_failure_to_measure_memory_takes_nothing_from_the_times(monkeypatch):
    def extra(case, provider, config):
        if provider is not None and provider.name == "torch":
            raise RuntimeError("planted")
        return 3.0

    monkeypatch.setattr(f"{FRAME}.extra_memory", extra)
    result = measured(OURS, Provider("torch", double), case=DoubleCase(2048**2), memory=True)
    assert (result.row("fastcse").extra_mib, result.row("torch").extra_mib) == (3.0, None)
    assert result.row("torch").ms > 0
    assert "memory not measured: RuntimeError: planted" in result.row("torch").note
    few = measured(OURS, case=DoubleCase(2048**2 // 1000 - 1), memory=True)
    assert few.row("fastcse").extra_mib is None


def test_memory_on_the_cpu_is_that_of_a_process_of_its_own():
    """The one child of these tests; everything that it is sent is found by name."""
    benchmark = BENCHMARKS["loss"]
    case = benchmark.case(2048, 2048, 8, loss="focal")
    matrix = 2048 * 2048 * 4 / MIB
    assert memory_of.extra_memory(case, benchmark.providers["eager"]) > matrix


# Files and tables


def test_no_number_is_null_with_a_note_and_old_files_have_it_as_text(tmp_path, monkeypatch):
    monkeypatch.setitem(BENCHMARKS, "doubling", Benchmark(DoubleCase, {}, 1, ""))
    result = measured(OURS, Provider("lost", lost))
    assert math.isnan(result.row("lost").error)
    made = Document("fastcse bench doubling", environment("cpu"), [result])
    write_results(tmp_path / "new" / "a.json", made)
    labels = json.loads((tmp_path / "new" / "a.json").read_text())
    (row,) = [row for row in labels["results"][0]["rows"] if row["provider"] == "lost"]
    assert (row["error"], row["note"]) == (None, "error is nan")
    found = read_results(tmp_path / "new" / "a.json")
    assert found.results[0].case == SMALL
    assert (found.machine, found.command) == (made.machine, made.command)
    assert found.results[0].row("fastcse") == result.row("fastcse")
    row["error"] = "nan"
    (tmp_path / "old.json").write_text(json.dumps(labels))
    assert math.isnan(read_results(tmp_path / "old.json").results[0].row("lost").error)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"command": "", "machine": {}, "results": [{"operation": "x"}]}'])
def test_what_is_no_result_file_is_named(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"a\.json' holds no results of fastcse bench"):
        read_results(path)
    with pytest.raises(InputError, match=r"b\.json' does not exist"):
        read_results(tmp_path / "b.json")


@pytest.mark.parametrize("n", [(4,), (4, 8)])
def test_the_figure_has_a_panel_for_what_was_measured(tmp_path, monkeypatch, n):
    figures = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, file, **options: figures.append(figure))
    results = [measured(OURS, Provider("torch", wrong), case=DoubleCase(k, data=data)) for k in n
               for data in ("clustered", "random")]  # fmt: skip
    draw(results, tmp_path / "a.png")
    panels = figures[0].axes
    assert [panel.get_title(loc="left") for panel in panels] == ["time / time of the bare products", "error"]
    if len(n) == 1:
        assert len(panels[0].patches) == 6
        return
    labels = [text.get_text() for text in figures[0].legends[0].texts]
    assert labels == [f"{name} data {data}" for data in ("clustered", "random")
                      for name in ("bare products", "fastcse", "torch")]  # fmt: skip
    assert [len(line.get_xdata()) for line in panels[0].lines] == [2] * 6
    assert len(panels[1].lines) == 2  # the error of fastcse is 0, which no logarithm has


def test_tables_fit_80_columns_and_name_everyone(monkeypatch, capsys):
    from rich.console import Console

    long = "sentence-transformers cached large"
    result = measured(OURS, Provider(long, double, note="[whole] matrix", configs=()), Provider("lost", lost),
                      Provider("broken", failing_after(0)))  # fmt: skip
    console = Console(width=80)
    console.print(result_table(result))
    console.print(legend([result]))
    text = capsys.readouterr().out
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    for part in (
        long,
        "bare products",
        "TFLOP/s",
        f"{long}: [whole] matrix",
        "broken failed: MemoryError: planted [red]",
    ):
        assert part in text
    (row,) = [line for line in text.splitlines() if line.startswith("lost")]
    assert row.split()[-1] == "nan"


# The command


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(f"{FRAME}.rounds", lambda case, repeat: repeat)


def run(tmp_path, *providers, n=(4,), as_json=False):
    """`fastcse bench doubling`."""
    benchmark = Benchmark(DoubleCase, {provider.name: provider for provider in providers}, 1, "")
    files = {"output": str(tmp_path / "a.json"), "plot": str(tmp_path / "made" / "a.png")}
    command.run_all(benchmark, [DoubleCase(k) for k in n], command.Run(repeat=1, memory=False, **files), as_json)


def stopping_at(n, error, seen=lambda: None):
    """fastcse, but `error` at the case of this size."""

    def make(case, x):
        seen()
        if case.n == n:
            raise error
        return lambda: 2 * x

    return Provider("fastcse", make)


def test_a_command_shows_and_writes_the_same(tmp_path, quick, capsys):
    run(tmp_path, OURS, Provider("lost", lost), as_json=True)
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((tmp_path / "a.json").read_text())
    assert report["machine"]["versions"]["torch"]
    assert (tmp_path / "made" / "a.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["a.json", "a.png"]


def test_an_interrupt_keeps_what_was_measured(tmp_path, quick, capsys):
    written = []
    with pytest.raises(typer.Exit) as ended:
        run(tmp_path, stopping_at(5, KeyboardInterrupt(), lambda: written.append((tmp_path / "a.json").exists())),
            n=(4, 5, 6))  # fmt: skip
    assert (ended.value.exit_code, written) == (130, [False, True])  # after each case
    assert "Stopped after 1 of 3 problems." in capsys.readouterr().err
    assert [result["n"] for result in json.loads((tmp_path / "a.json").read_text())["results"]] == [4]
    (tmp_path / "a.json").unlink()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stopping_at(4, KeyboardInterrupt()), n=(4, 5))
    assert not (tmp_path / "a.json").exists()


def test_a_wrong_answer_ends_with_code_1_and_removes_what_was_written(tmp_path, quick, capsys):
    with pytest.raises(typer.Exit) as ended:
        run(tmp_path, stopping_at(5, RuntimeError("planted")), n=(4, 5))
    assert ended.value.exit_code == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Error: fastcse failed at doubling, N = 5" in shown.err
    assert not (tmp_path / "a.json").exists()
    (tmp_path / "a.json").write_text("earlier")
    with pytest.raises(typer.Exit):
        run(tmp_path, stopping_at(4, RuntimeError("planted")))
    assert (tmp_path / "a.json").read_text() == "earlier"


def test_fastcse_is_always_among_the_chosen():
    loss = BENCHMARKS["loss"]
    assert [p.name for p in command._chosen(loss, "chunked eager, eager")] == ["fastcse", "eager", "chunked eager"]
    assert [p.name for p in command._chosen(loss, "all")] == list(loss.providers)


def test_a_result_is_read_back_as_what_it_was():
    for benchmark in BENCHMARKS.values():
        result = Result(benchmark.case(2048), 3, "cpp", [benchmark.case.row("fastcse", ms=1.0)])
        assert output.read_result(result.labels()) == result
