"""Measures operations beside every peer that is installed: time in turns, memory, and accuracy in the same run.

`problem` says what is computed, `peers` who computes it, `measure` how it is timed. `fastcse bench` runs it.
"""
