"""The command line, `fastcse`: info, train, eval, demo."""

from .commands import app as app
from .commands import main as main
