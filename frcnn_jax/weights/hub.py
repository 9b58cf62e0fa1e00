"""Weights by the name of a model hub: downloaded once, then read from the cache.

| `backbone.pretrained` | file |
| --- | --- |
| `hf:timm/resnet50.a1_in1k` | `model.safetensors` of that repository |
| `hf:timm/convnext_tiny.fb_in22k_ft_in1k` | the same, of another network |
| `hf:timm/resnet50.a1_in1k@main/model.safetensors` | of a revision, by its name there |

The cache is that of the package huggingface_hub (`HF_HOME` moves it), which names each
large file by its SHA-256; the contents are compared with it.
"""

import hashlib
import pathlib
import re

PREFIX = "hf:"
NAME = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:@([\w.-]+))?(?:/([\w./-]+))?")


def fetch(name: str) -> pathlib.Path:
    """Return the local file of a hub name, downloaded if it is not there yet.

    Raises ValueError for a name of another form and for a file whose contents are not
    what the hub says, FileNotFoundError, which says what to download by hand, where the
    hub cannot be reached or lacks it, and ImportError without huggingface_hub.
    """
    match = NAME.fullmatch(name)
    if match is None:
        raise ValueError(
            f"backbone.pretrained={name!r}: expected hf:OWNER/REPOSITORY, then "
            "@REVISION and /FILE where they are not main and model.safetensors"
        )
    repository, revision, file = match[1], match[2], match[3] or "model.safetensors"
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise ImportError(
            f"backbone.pretrained={name!r} needs the package huggingface_hub: install "
            f"it, or download {file} of {repository} and give its path"
        ) from error
    try:
        path = pathlib.Path(
            huggingface_hub.hf_hub_download(repository, file, revision=revision)
        )
    except (OSError, errors.EntryNotFoundError, errors.HFValidationError) as error:
        url = huggingface_hub.hf_hub_url(repository, file, revision=revision)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(
            f"backbone.pretrained={name!r} is not in the cache and could not be "
            f"downloaded ({reason}): check the name; or, where there is no network, "
            f"download {url} on another machine and give the path of that file"
        ) from error
    check(path)
    return path


def check(path: pathlib.Path) -> None:
    """Raise ValueError where a cached file is not what its name, a SHA-256, says.

    Small files and caches without links have other names, and are not checked.
    """
    expected = path.resolve().name
    if not re.fullmatch(r"[0-9a-f]{64}", expected):
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise ValueError(
            f"{path.resolve()} is damaged: its SHA-256 is {found}; delete the file, "
            "and the next run downloads it again"
        )
