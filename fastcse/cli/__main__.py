"""`python -m fastcse.cli`, the same as `fastcse`."""

from fastcse.cli.commands import main

main()
