"""Write docs/cli.md from the command line itself: python scripts/cli_docs.py. A test holds the file to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from vgg16_xray.cli import app

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
HEAD = """# The command line

Made from the commands themselves by `python scripts/cli_docs.py`.

Exit codes: 0 done, 1 some inputs failed, 2 wrong usage or unusable input, 130 interrupted (Ctrl-C), 143 terminated
(SIGTERM). An error is one line on standard error that
names the file or parameter, the rule and what was found. `--debug` shows the traceback with it, `--quiet` leaves out
progress and notes; both are accepted anywhere. Colours are shown on a terminal only. `vgg16-xray --install-completion`
teaches the shell to complete.
"""


def page() -> str:
    """The whole page as Markdown."""
    return HEAD + "".join(_command(typer.main.get_command(app), "vgg16-xray"))


def _command(command: Any, name: str) -> Iterator[str]:
    context = command.context_class(command, info_name=name)
    described = [parameter for parameter in command.params if parameter.name != "help"]
    if name != "vgg16-xray":
        text, _, example = (command.help or "").partition("Example: ")
        usage = " ".join(command.collect_usage_pieces(context))
        yield f"\n## {name}\n\n{' '.join(text.split())}\n\n```\n{name} {usage}\n```\n"
        if example:
            yield f"\nExample: `{' '.join(example.split())}`\n"
    if described:
        yield "\n| | |\n|---|---|\n" + "".join(_row(parameter, context) for parameter in described)
    for part, inner in getattr(command, "commands", {}).items():
        yield from _command(inner, f"{name} {part}")


def _row(parameter: Any, context: Any) -> str:
    name, text = parameter.get_help_record(context) or (parameter.make_metavar(context), parameter.help or "")
    text = " ".join(text.split()).replace("<", "&lt;")
    return "| `{}` | {} |\n".format(*(part.replace("|", "\\|") for part in (name, text)))


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
