"""`python -m fastcse.cli`, the same as `fastcse`."""

from .commands import main

main()
