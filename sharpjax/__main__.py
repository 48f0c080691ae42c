"""`python -m sharpjax`: the command line."""

from sharpjax.cli import main

if __name__ == "__main__":
    main()
