"""The command line, `fastcse`: bench, cluster, demo, eval, info, mine, plan, recipes, train."""

from .commands import app as app
from .commands import main as main
