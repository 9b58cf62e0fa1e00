"""How a script is run from a shell: flags, help, one-line errors, exit codes.

    CONFIG = cli.define_config("The experiment.", required=True)
    SET = cli.define_changes()      # of the configuration that a checkpoint carries

    def main(argv): ...

    cli.run(main)                   # or run(main, takes="images"), positional arguments

`--config.NAME=VALUE` changes a leaf on every script, whether its configuration comes
from an experiment or from a checkpoint; `--set=NAME=VALUE` is the same thing.
`--config=EXPERIMENT --config.help` prints the leaves, their values and what they mean.
An error that the program foresaw is one line on stderr (`--debug` shows where it was
raised). The exit codes, and which of them may be tried again, are those of
`troubles`: 0 done, 1 done in part, 2 the command is wrong, 75 try later, 143 SIGTERM.
"""

import difflib
import logging
import os
import pathlib
import re
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn

import ml_collections
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from frcnn_jax.training import config as configs
from frcnn_jax.training import describe, troubles

HELP = {"--help", "-help", "-?", "--helpshort", "-h"}
LIBRARIES = ("absl", "jax", "orbax", "tensorstore", "etils", "grain")
DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error.")
_config: list[bool] = []  # whether the script has the flag, and whether it must be
_changes: list[str] = []


def define_config(help_text: str, *, required: bool = False) -> flags.FlagHolder:
    """The flag `--config`, a file of an experiment, whose leaves are flags as well.

    A flag for a leaf that the experiment lacks is an error, unless it is one of `data`
    that the source takes.
    """
    _config.append(required)
    holder = config_flags.DEFINE_config_file("config", None, help_text)
    flag = flags.FLAGS["config"]
    flag.parser = _Parser(flag.parser)
    return holder


def define_changes() -> flags.FlagHolder[list[str]]:
    """The flag `--set=LEAF=VALUE`, for the configuration that a checkpoint carries."""
    _changes.append("set")
    return flags.DEFINE_multi_string("set", [], "The same as --config.NAME=VALUE.")


def run(main: Callable[[list[str]], Any], *, takes: str = "") -> NoReturn:
    """Runs `main(argv)` and ends the process; `takes` names positional arguments.

    Without it an argument that is no flag is refused.
    """
    quiet()
    sys.path.append(str(root()))  # experiments import their shared parts from there
    for stream in (sys.stdout, sys.stderr):  # names of files need not be UTF-8
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore

    def guarded(argv: list[str]) -> None:
        quiet()  # absl has just turned its own messages on
        try:
            if argv[1:] and not takes:
                raise app.UsageError(_unexpected(argv[1:]))
            main(argv)
        except troubles.Partly as error:
            sys.exit(_said(str(error), troubles.PARTLY))
        except BrokenPipeError:  # whoever read this has gone
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except (Exception, KeyboardInterrupt) as error:
            sys.exit(_end(error))

    app.run(guarded, argv=sys.argv, flags_parser=_parse)
    raise AssertionError("absl's run does not return")


def quiet() -> None:
    """Keeps what is below this package to errors on the screen."""
    absl_logging.set_verbosity(absl_logging.ERROR)
    if "cv2" in sys.modules:  # its errors are raised as well
        sys.modules["cv2"].utils.logging.setLogLevel(0)
    for library in LIBRARIES:
        logging.getLogger(library).setLevel(logging.ERROR)


def root() -> pathlib.Path:
    """The folder above the script's, which has `experiments` beside it."""
    script = pathlib.Path(getattr(sys.modules["__main__"], "__file__", "") or ".")
    above = script.absolute().parents
    return next((p for p in above if (p / "experiments").is_dir()), above[1])


def _end(error: BaseException) -> int:
    """Says what went wrong and gives the exit code; raises what was not foreseen."""
    usage = isinstance(error, (app.UsageError, flags.Error))
    found = (str(error), troubles.WRONG) if usage else None
    found = found or troubles.explain(error, ours=(root(),))
    if found is None:
        raise error
    if flags.FLAGS.is_parsed() and DEBUG.value:
        logging.getLogger("frcnn_jax").exception("--debug: where it was raised")
    return _said(found[0], found[1])


def _show(text: str) -> NoReturn:
    """Prints what was asked for and ends the process."""
    try:
        print(text, flush=True)
    except BrokenPipeError:  # as with `--help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(troubles.DONE)


def _unexpected(arguments: list[str]) -> str:
    line = f"unexpected {arguments}: options begin with -- (see --help)"
    leaf = re.match(r"(?:config\.)?([\w.]+=.*)", arguments[0])
    return line + (f"; is it --config.{leaf[1]}?" if leaf else "")


def _said(line: str, code: int) -> int:
    script = pathlib.Path(sys.argv[0]).name
    print(f"{script}: {line}", file=sys.stderr)
    return code


# ------------------------------------------------------------------------------ flags


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags; ends the process with one line where they are wrong."""
    if HELP & set(argv[1:]):
        _show(help_text())
    if "--helpfull" in argv[1:]:
        _show(f"{sys.modules['__main__'].__doc__}\n{flags.FLAGS.get_help()}")
    try:
        config = _given(argv, "config") if _config else None
        if "--config.help" in argv:
            _show(_leaves(_given(argv, "config")))
        argv = rewrite(argv, config)
        sys.argv[:] = argv  # where config_flags looks for the leaves
        if config is not None:
            load(config)
        if _config and _config[0] and config is None:
            raise app.UsageError(f"give --config=FILE: {describe.listed(root())}")
        return flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        sys.exit(_said(_unknown(error), troubles.WRONG))
    except flags.IllegalFlagValueError as error:
        sys.exit(_said(_illegal(error), troubles.WRONG))
    except Exception as error:
        sys.exit(_end(error))


def _given(argv: list[str], name: str) -> str | None:
    """The value of a flag among the arguments, the last one."""
    found = None
    for i, item in enumerate(argv):
        flag, equals, value = item.partition("=")
        if flag in (f"--{name}", f"-{name}"):
            found = value if equals else argv[i + 1] if argv[i + 1 :] else ""
    return found


def rewrite(argv: list[str], config: str | None) -> list[str]:
    """The arguments in the spelling that the script's own flags have.

    `--config.NAME=VALUE` and `--set=NAME=VALUE` both change the experiment's
    configuration where there is one, and the checkpoint's where the script reads one.
    """
    out, changes, items = [], [], iter(argv)
    for item in items:
        if match := re.fullmatch(r"--?config\.([^=]+)(?:=(.*))?", item, re.DOTALL):
            name, value = match.groups()
            if value is None and not _changes:
                out.append(item)  # a boolean, or its value follows: absl knows
                continue
            if value is None:
                raise app.UsageError(f"{item}: expected --config.NAME=VALUE")
            changes.append(f"{name}={value}")
        elif item in ("--set", "-set"):
            changes.append(next(items, ""))
        elif match := re.fullmatch(r"--?set=(.*)", item, re.DOTALL):
            changes.append(match[1])
        else:
            out.append(item)
    if changes and not _config and not _changes:
        raise app.UsageError("this script has no configuration to change")
    for change in changes:
        if "=" not in change:
            raise app.UsageError(
                f"change {change!r}: expected --config.NAME=VALUE, as "
                "--config.data.root=DIR"
            )
    if _config and config is not None:
        _check_names(config, [change.partition("=")[0] for change in changes])
        out += [f"--config.{change}" for change in changes]
    elif changes and not _changes:
        raise app.UsageError(f"give --config=FILE: {describe.listed(root())}")
    if _changes:
        out += [f"--set={change}" for change in changes]
    return out


def _check_names(config: str, names: list[str]) -> None:
    """UsageError for a leaf that the experiment does not have, naming the nearest."""
    there = configs.leaves(load(config).to_dict())
    for name in names:
        group = any(leaf.startswith(f"{name}.") for leaf in there)
        # Looked at when the flag is parsed.
        source = name.startswith("data.") or configs.is_named(name)
        source = source or configs.default_of(name) is not None
        if name not in there and not (group or source or "[" in name):
            near = difflib.get_close_matches(name, there, 1)
            raise app.UsageError(
                f"{config} has no leaf --config.{name}: "
                + (f"is it --config.{near[0]}? " if near else "")
                + "--config.help lists all of them"
            )


def load(text: str) -> Any:
    """The configuration of `FILE.py:ARG`; UsageError says what is wrong with either."""
    path, colon, arg = text.partition(":")
    try:
        get_config = experiment(path).get_config
        return get_config(arg) if colon else get_config()
    except (TypeError, ValueError, AttributeError, ImportError) as error:
        if flags.FLAGS.is_parsed() or "--debug" in sys.argv:
            raise
        raise app.UsageError(f"{text}: {error}") from None
    except SyntaxError as error:
        raise app.UsageError(f"{path}, line {error.lineno}: {error.msg}") from None


def experiment(path: str) -> ModuleType:
    """The module of an experiment's file; UsageError lists those that there are."""
    if not pathlib.Path(path).is_file():
        raise app.UsageError(f"no experiment {path!r}: {describe.listed(root(), path)}")
    return configs.load_experiment(path)


def _leaves(config: str | None) -> str:
    if config is None:
        raise app.UsageError(f"give --config=FILE too: {describe.listed(root())}")
    return describe.leaves(load(config).to_dict(), config.partition(":")[0])


def _unknown(error: flags.UnrecognizedFlagError) -> str:
    """A flag that is not there, and the nearest that is."""
    near = difflib.get_close_matches(error.flagname, list(flags.FLAGS), 1)
    return (
        f"there is no flag --{error.flagname}: "
        + (f"is it --{near[0]}? " if near else "")
        + "--help lists all of them"
    )


def _illegal(error: flags.IllegalFlagValueError) -> str:
    """A flag that is missing, or whose value is of another kind."""
    missing = re.search(r"Flag --(\S+) must have a value other than None", str(error))
    if missing:
        there = describe.listed(root()) if missing[1] == "config" else ""
        return f"give --{missing[1]}: {there or flags.FLAGS[missing[1]].help}"
    return str(error).rstrip(".")


class _Parser(flags.ArgumentParser):
    """Loads an experiment as `parser` does, and looks at the flags to change it."""

    def __init__(self, parser: flags.ArgumentParser):
        self._parser = parser
        self.syntactic_help = parser.syntactic_help

    def parse(self, argument):
        config = self._parser.parse(argument)
        if isinstance(config, ml_collections.ConfigDict):
            given = flags.FLAGS.read_flags_from_files(sys.argv, force_gnu=False)
            names, source = _named(given, config)
            configs.admit(config, names, source)
        return config

    def flag_type(self):
        return self._parser.flag_type()


def _named(argv: list[str], config: ml_collections.ConfigDict) -> tuple[list[str], str]:
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


# ------------------------------------------------------------------------------- help


def help_text() -> str:
    """What the script does, two ways to call it, its flags, and then the rest."""
    module = sys.modules["__main__"]
    blocks = (module.__doc__ or "").strip().split("\n\n")
    is_call = [bool(re.match(r"\s*python scripts/", block)) for block in blocks]
    calls = [block for block, call in zip(blocks, is_call, strict=True) if call]
    rest = [b for b, call in zip(blocks[1:], is_call[1:], strict=True) if not call]
    own = flags.FLAGS.get_key_flags_for_module(module)
    own += [flags.FLAGS["config"]] if _config else []
    own += [flags.FLAGS[name] for name in _changes]
    own = sorted({flag.name: flag for flag in own}.values(), key=lambda f: f.name)
    lines = [_flag(flag) for flag in [*own, flags.FLAGS["debug"]]]
    if _config or _changes:
        lines.append(
            "  --config.NAME=VALUE\n      Changes a value of the configuration, as "
            "--config.data.root=DIR; may be repeated.\n      --config=EXPERIMENT "
            "--config.help lists the names."
        )
    parts = [blocks[0], *calls, "flags:\n" + "\n".join(lines), *rest]
    return "\n\n".join(parts)


def _flag(flag: Any) -> str:
    """One flag in the help: its name, what it means, its default."""
    default = flag.default
    said = "" if default in (None, [], "", False) else f" Default: {default}."
    choices = getattr(flag.parser, "enum_values", None)
    kind = f"={'|'.join(choices)}" if choices else ""
    meaning = re.sub(
        r"^<[^>]*>: |;\s+repeat this option.*", "", flag.help, flags=re.DOTALL
    )
    more = " May be repeated." if isinstance(flag, flags.MultiFlag) else ""
    return f"  --{flag.name}{kind}\n      {meaning}{more}{said}"
