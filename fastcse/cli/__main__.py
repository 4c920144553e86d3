"""`python -m fastcse.cli`, the same as `fastcse`."""

from . import main

main()
