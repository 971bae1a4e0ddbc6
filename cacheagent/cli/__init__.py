"""The command line. Exit status: 0 done, 1 refused or failed, 2 usage, 3 daemon out of reach."""

from __future__ import annotations

import click

import cacheagent
from cacheagent.cli.disks import disk
from cacheagent.cli.ending import EndingGroup
from cacheagent.cli.images import image
from cacheagent.cli.overview import status
from cacheagent.cli.pruning import prune
from cacheagent.cli.servers import check_config, imageserver, serve
from cacheagent.cli.settings import client_options
from cacheagent.cli.top import top

__all__ = ["main"]


@click.group(cls=EndingGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(cacheagent.__version__, "-V", "--version", prog_name="cacheagent")
@client_options
def main() -> None:
    """Give instances disks from Glance images that are downloaded once.

    Exit status: 0 done, 1 refused or failed, 2 usage, 3 daemon out of reach.
    """


for command in (serve, check_config, imageserver, disk, image, prune, status, top):
    main.add_command(command)
