"""`python -m evengrad` is `evengrad`."""

from evengrad.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
