"""How a script is run from a shell."""

import sys
from collections.abc import Callable

from absl import app

HELP = {"--help", "-help", "-?", "--helpshort", "--helpfull"}


def run(main: Callable) -> None:
    """`absl.app.run`, where asking for help is a success and -h asks for it, too."""
    arguments = ["--help" if a == "-h" else a for a in sys.argv]
    try:
        app.run(main, argv=arguments)
    except SystemExit:
        if HELP & set(arguments[1:]):
            sys.exit(0)
        raise
