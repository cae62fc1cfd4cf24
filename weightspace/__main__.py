"""``python -m weightspace``: the command line."""

from weightspace.cli import main

if __name__ == "__main__":
    main(prog_name="weightspace")
