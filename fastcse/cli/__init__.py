"""The command line, `fastcse`: info, train, eval, demo."""

from fastcse.cli.commands import app as app
from fastcse.cli.commands import main as main
