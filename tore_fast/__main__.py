"""`python -m tore_fast` is the `tore-fast` command; without arguments it prints the environment report."""

from .cli import main

if __name__ == "__main__":
    main()
