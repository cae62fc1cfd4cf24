"""The command line: parse, call the library, write. One file a command."""


def main() -> None:
    """Run the command line."""
