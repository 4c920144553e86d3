"""Figures: what is drawn, where it is written, and what stays untouched."""

from __future__ import annotations

import sys

import pytest

from fastcse import plots

COLOR = {"ours": plots.OURS, "theirs": plots.EAGER}


@pytest.fixture
def drawn(monkeypatch):
    """Figures that would have been written."""
    figures = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, file, **options: figures.append(figure))
    return figures


def test_a_page_is_one_whole_file(tmp_path):
    with plots.page(tmp_path / "new" / "a.png", 2, size=(6, 3), title="Two") as (left, right):
        plots.bars(left, {"ours": 1.0, "theirs": 2.0}, COLOR)
        plots.columns(right, ["ms"], {"ours": [1], "theirs": [3]}, COLOR, {"ours": ["1 ms"], "theirs": ["3 ms"]})
    assert (tmp_path / "new" / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ZeroDivisionError), plots.page(tmp_path / "b.png", 1, size=(2, 2)):
        1 / 0  # noqa: B018
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_lines_are_sorted_and_ours_lies_above(drawn, tmp_path):
    with plots.page(tmp_path / "a.png", 1, size=(3, 3)) as (axes,):
        plots.lines(axes, {"ours": [(512, 2.0), (64, 1.0)], "theirs": [(64, 3.0)]}, COLOR, wide={"ours"})
        plots.logarithmic(axes, [64, 512])
        plots.legend_beside(axes)
    ours, theirs = drawn[0].axes[0].lines
    assert list(ours.get_xdata()) == [64, 512]
    assert ours.get_zorder() > theirs.get_zorder()
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["64", "512"]
    assert [text.get_text() for text in drawn[0].legends[0].texts] == ["ours", "theirs"]


def test_bars_stand_in_order_with_their_numbers(drawn, tmp_path):
    with plots.page(tmp_path / "a.png", 2, size=(3, 3)) as (axes, empty):
        plots.bars(axes, {"ours": 0.0, "theirs": 2.345}, COLOR)
        plots.bars(empty, {}, COLOR)
    assert {text.get_text() for text in axes.texts} == {"0", "2.35"}
    assert axes.yaxis_inverted()
    assert [text.get_text() for text in empty.texts] == ["not measured"]


@pytest.mark.parametrize(("values", "scale"), [([4.0, 2.0, 1.0], "log"), ([1.0, 0.0, 0.5], "linear")])
def test_a_curve_that_touches_0_is_linear(drawn, tmp_path, values, scale):
    with plots.page(tmp_path / "a.png", 1, size=(3, 3)) as (axes,):
        plots.curve(axes, [1, 2, 3], values)
    assert axes.get_yscale() == scale
    raw, mean = (line.get_ydata() for line in axes.lines)
    assert list(raw) == values
    assert mean[0] == values[0]
    assert mean[1] == pytest.approx(values[0] + 0.625 * (values[1] - values[0]))


def test_colors_are_fixed_or_the_palettes_in_turn():
    found = plots.colors(["x", "ours", "y", "x"], COLOR)
    assert found == {**COLOR, "x": plots.PALETTE[0], "y": plots.PALETTE[1]}


def test_pyplot_is_never_imported(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with plots.page(tmp_path / "a.png", 1, size=(2, 2)) as (axes,):
        plots.curve(axes, [1, 2], [1.0, 2.0])
    assert (tmp_path / "a.png").exists()
    assert "matplotlib" not in vars(plots)
