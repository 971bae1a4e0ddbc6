"""The command line. Exit status: 0 done, 1 refused or failed, 2 usage, 3 daemon out of reach."""

from __future__ import annotations

from importlib import import_module

import click

import cacheagent
from cacheagent.cli.ending import EndingGroup
from cacheagent.cli.settings import client_options

__all__ = ["main"]

_COMMANDS = {
    "check-config": ("servers", "check_config"),
    "disk": ("disks", "disk"),
    "image": ("images", "image"),
    "imageserver": ("servers", "imageserver"),
    "prune": ("pruning", "prune"),
    "serve": ("servers", "serve"),
    "status": ("overview", "status"),
    "top": ("top", "top"),
}
"""The module of each command, and its name there."""


class _Commands(EndingGroup):
    """Loads a command when it is asked for: the daemon needs not what its clients show things with.

    (click's documentation, "Lazily Loading Subcommands".) Until then an empty one has its name:
    click takes from these what there is, and what somebody may have meant who mistyped one.
    """

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 -- the signature is click's
        """Give a command, None where there is none of that name."""
        if cmd_name not in _COMMANDS:
            return None
        module, name = _COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(f"cacheagent.cli.{module}"), name)
        return command


@click.group(
    cls=_Commands,
    commands=[click.Command(name) for name in _COMMANDS],
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(cacheagent.__version__, "-V", "--version", prog_name="cacheagent")
@client_options
def main() -> None:
    """Give instances disks from Glance images that are downloaded once.

    Exit status: 0 done, 1 refused or failed, 2 usage, 3 daemon out of reach.
    """
