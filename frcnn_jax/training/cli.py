"""How a script is run from a shell."""

import re
import sys
from collections.abc import Callable

import ml_collections
from absl import app, flags
from ml_collections import config_flags

from frcnn_jax.training import config as configs

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


def define_config(help_text: str) -> flags.FlagHolder:
    """The flag `--config`, a file of an experiment, whose leaves are flags as well.

    A flag for a leaf that the experiment lacks is an error of one line, unless it is
    one of `data` that the source takes.
    """
    holder = config_flags.DEFINE_config_file("config", None, help_text)
    flag = flags.FLAGS["config"]
    flag.parser = _Parser(flag.parser)
    return holder


class _Parser(flags.ArgumentParser):
    """Loads an experiment as `parser` does, and looks at the flags to change it."""

    def __init__(self, parser: flags.ArgumentParser):
        self._parser = parser
        self.syntactic_help = parser.syntactic_help

    def parse(self, argument):
        config = self._parser.parse(argument)
        if isinstance(config, ml_collections.ConfigDict):
            given = flags.FLAGS.read_flags_from_files(sys.argv, force_gnu=False)
            names, source = _leaves(given, config)
            configs.admit(config, names, source)
        return config

    def flag_type(self):
        return self._parser.flag_type()


def _leaves(
    argv: list[str], config: ml_collections.ConfigDict
) -> tuple[list[str], str]:
    """The leaves that the flags name, and the source that they or the file name."""
    names, source = [], configs.source_name(config)
    for i, argument in enumerate(argv):
        match = re.match(r"--?(no)?config\.([^=]+)(=(.*))?$", argument, re.DOTALL)
        if match is None:
            continue
        names.append(match[2])
        if match[2] == "data.name":
            source = match[4] if match[3] else "".join(argv[i + 1 : i + 2])
    return list(dict.fromkeys(names)), source
