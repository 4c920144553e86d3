"""`python -m fastcse`, and so `torchrun -m fastcse train ...`."""

from .cli import main

if __name__ == "__main__":
    main()
