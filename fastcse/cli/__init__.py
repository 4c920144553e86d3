"""The command line, `fastcse`: info, mine, train, eval, bench, demo."""

from .commands import app as app
from .commands import main as main
