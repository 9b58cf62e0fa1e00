"""Packages that only a part of this one needs, and the command that installs them."""

import importlib.util


def need(extra: str, *modules: str) -> None:
    """ModuleNotFoundError that names the extra where one of the modules is not there.

    >>> need("train", "json")
    """
    missing = [name for name in modules if not _there(name)]
    if missing:
        raise ModuleNotFoundError(
            f"this part of frcnn_jax needs {', '.join(missing)}: run "
            f"pip install '.[{extra}]' in the folder of the repository",
            name=missing[0],
        )


def _there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
