"""``python -m cacheagent`` is the command ``cacheagent``."""

from cacheagent.cli import main

if __name__ == "__main__":
    main(prog_name="cacheagent")
