"""What is wrong from outside, in one sentence: the command line prints it, without a traceback."""

from __future__ import annotations

from collections.abc import Mapping


class InputError(ValueError):
    """A mistake in what the caller passed, in one sentence that names the argument and its value.

    The command line prints it and ends with exit code 2; any other exception is a fault of the package, and keeps its
    traceback.
    """


class OptionError(InputError):
    """An option outside its range. The sentence is given as names of options and the text between them, in turn: the
    command line spells each name as its flag.

    >>> error = OptionError("range_min", " is 5: expected less than ", "range_max", ", which is 3")
    >>> str(error)
    'range_min is 5: expected less than range_max, which is 3'
    >>> error.spelled({})
    '--range-min is 5: expected less than --range-max, which is 3'
    """

    def __init__(self, *sentence: str):
        self.sentence = sentence
        super().__init__("".join(sentence))

    def __reduce__(self) -> tuple:
        return type(self), self.sentence  # pickled by other ranks

    @property
    def field(self) -> str:
        """The option that the sentence is about."""
        return self.sentence[0]

    def spelled(self, flags: Mapping[str, str]) -> str:
        """The sentence with flags for names; `flags` has those that are not the name itself."""
        words = list(self.sentence)
        words[::2] = [flags.get(name, flag(name)) for name in words[::2]]
        return "".join(words)


class RunError(RuntimeError):
    """What ended a run from outside, a full disk or a lost process, in one sentence. The command line prints it and
    ends with exit code 1."""


def flag(name: str) -> str:
    """The usual spelling of an option on the command line.

    >>> flag("range_max")
    '--range-max'
    """
    return "--" + name.replace("_", "-")
