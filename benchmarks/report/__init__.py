"""Turns the result files into benchmarks/RESULTS.md, the README's measured section and figures: `make report`.

Nothing there is typed by hand, and what no file holds is called not measured.
"""
