"""`python -m adrec.cli`."""

from adrec.cli import main

if __name__ == "__main__":
    main()
