"""Measures one problem beside its peers, for a user: time in turns, memory, and accuracy against float64 in one run.

`case` says what can be measured, `provider` who computes it, `measure` how; an operation is a case and its providers,
and `benchmarks` lists them. `fastcse bench` runs it.

The benchmarks folder of the repository decides what is published: it holds targets and baselines, and measures nothing
by itself.
"""
