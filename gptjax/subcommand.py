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
        formatter_class=_Formatter,
        allow_abbrev=False,
    )


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Shows the default of every option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text, default = action.help or "", action.default
        has_one = default is not None and default is not False and default not in (argparse.SUPPRESS, [])
        if not action.option_strings or not has_one or "default:" in text:
            return text
        return f"{text} (default: %(default)s)".lstrip()
