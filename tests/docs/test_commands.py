"""Every command that the documentation shows is one that the command line takes."""

from typing import Any

import pytest
import typer

import featurestore.cli
import ingest.cli
import training.cli
from tests.docs.commands import PAGES, TREE, Command, quoted_commands, shown_commands

APPS = {"ingest": ingest.cli.app, "featurestore": featurestore.cli.app, "training": training.cli.app}
SHOWN = [command for page in PAGES for command in shown_commands(page)]
QUOTED = [command for page in PAGES for command in quoted_commands(page)]


def name(command: Command) -> str:
    return f"{command.page.relative_to(TREE)}: {command.text}"[:150]


def subcommand(command: Command) -> tuple[Any, list[str]]:
    """Of click, or of the copy of it that newer versions of typer bring along."""
    group: Any = typer.main.get_command(APPS[command.program])
    assert command.arguments[0] in group.commands, f"{command.program} has no command {command.arguments[0]!r}"
    return group.commands[command.arguments[0]], list(command.arguments[1:])


@pytest.mark.parametrize("command", SHOWN, ids=name)
def test_a_command_in_a_block_can_be_run(command: Command) -> None:
    found, arguments = subcommand(command)
    if "--help" not in arguments:
        assert found.make_context(command.program, arguments).command is found


@pytest.mark.parametrize("command", QUOTED, ids=name)
def test_a_command_in_the_text_is_there_with_its_options(command: Command) -> None:
    found, arguments = subcommand(command)
    options = {option for parameter in found.params for option in (*parameter.opts, *parameter.secondary_opts)}
    wrong = [word for word in arguments if word.startswith("--") and word.partition("=")[0] not in {*options, "--help"}]
    assert not wrong


def test_they_are_found() -> None:
    """Else the tests above would be of nothing."""
    assert len(SHOWN) > 50
    assert len(QUOTED) > 25
