"""A command of the command line: its help, its description and an example below it."""

import argparse
from typing import Any


def subcommand(commands: Any, name: str, text: str, example: str, more: str = "") -> argparse.ArgumentParser:
    """The parser of a new command.

    Args:
        commands: what `add_subparsers` returned.
        name: of the command.
        text: what it does, beginning in lower case, without a full stop.
        example: a line to type.
        more: what stands below the example.
    """
    return commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=f"example: {example}{more}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
