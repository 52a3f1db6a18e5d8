"""Print a script that lets the TAB key complete commands, options, their values and files.

    bash   dpa3sim completion bash > ~/.local/share/bash-completion/completions/dpa3sim
    zsh    dpa3sim completion zsh > DIR/_dpa3sim, where DIR is in $fpath before compinit runs
    fish   dpa3sim completion fish > ~/.config/fish/completions/dpa3sim.fish

The script is static: TAB does not run dpa3sim. Print the script again after an update.
"""

from __future__ import annotations

import argparse

from dpa3sim.cli.options import Parser

SHELLS = ("bash", "zsh", "fish")
EXAMPLES = """\
source <(dpa3sim completion bash)       # for this shell only
dpa3sim completion fish > ~/.config/fish/completions/dpa3sim.fish
"""
# Placeholders for files and folders in the help of a command.
FILES = ("STRUCTURE", "FILE", "IN", "OUT", "XML", "MODEL", "BORN", "GLE_FILE", "REFERENCE")
FOLDERS = ("DIR",)


def configure(parser: Parser) -> None:
    """Arguments of ``dpa3sim completion``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("shell", choices=SHELLS, help="shell")


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    import shtab

    print(shtab.complete(_tree(), args.shell))
    return 0


def _tree() -> Parser:
    """One parser with all commands and subcommands, which never parses a command line."""
    from dpa3sim.cli.main import COMMANDS, module_of, top_parser

    def grow(parser: Parser, children: dict[str, str], *parents: str) -> None:
        branches = parser.add_subparsers()
        for name, text in children.items():
            module = module_of(*parents, name)
            branch = branches.add_parser(name, help=text, description=text)
            module.configure(branch)
            _describe(branch)
            if hasattr(module, "SUBCOMMANDS"):
                grow(branch, module.SUBCOMMANDS, name)

    tree = top_parser()
    grow(tree, COMMANDS)
    return tree


def _describe(parser: Parser) -> None:
    """Tell shtab the allowed values, which for settings are only in the help."""
    import shtab

    for action in parser._actions:
        shown = action.metavar if isinstance(action.metavar, str) else ""
        if "|" in shown:
            action.choices = shown.split("|")
        elif shown in FILES or (action.dest == "name" and not action.option_strings):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif shown in FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
