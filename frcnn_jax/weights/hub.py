"""Weights by the name of a model hub: downloaded once, then read from the cache.

| `backbone.pretrained` | file |
| --- | --- |
| `hf:timm/resnet50.a1_in1k` | `model.safetensors` of that repository |
| `hf:timm/resnet50.a1_in1k@main/model.safetensors` | of a revision, by its name there |

Weights have licences of their own. `LICENCES` has those of the networks that are read
here, as timm 1.0.28 names them; the licence is logged when a file is fetched, once a
process, and as a warning where it forbids commercial use.

| network | `backbone.pretrained` | licence |
| --- | --- | --- |
| ResNet-50 | `hf:timm/resnet50.a1_in1k` | Apache 2.0 |
| ResNet-50, torchvision's | `hf:timm/resnet50.tv2_in1k` | BSD 3-Clause |
| ConvNeXt-T (S, B) | `hf:timm/convnext_tiny.fb_in22k_ft_in1k` | Apache 2.0 |
| Swin-T (S, B) | `hf:timm/swin_tiny_patch4_window7_224.ms_in1k` | MIT |
| ViT-B, MAE | `hf:timm/vit_base_patch16_224.mae` | CC BY-NC 4.0, non-commercial |
| ViT-B, DINO | `hf:timm/vit_base_patch16_224.dino` | Apache 2.0 |
| ViT-B, Segment Anything | `hf:timm/samvit_base_patch16.sa1b` | Apache 2.0 |
| DINOv2 ViT-S/14 (B) | `hf:timm/vit_small_patch14_dinov2.lvd142m` | Apache 2.0 |

The cache is that of the package huggingface_hub (`HF_HOME` moves it), which names each
large file by its SHA-256; the contents are compared with it.
"""

import fnmatch
import functools
import hashlib
import logging
import pathlib
import re

log = logging.getLogger(__name__)

LICENCES = {  # the first pattern that fits a repository decides
    "timm/vit_*.mae": "CC BY-NC 4.0",
    "timm/*.fb_*sl_*": "CC BY-NC 4.0",
    "timm/*.eupe_*": "FAIR Noncommercial Research License",
    "timm/*.dinov3_*": "DINOv3 License",
    "timm/resne*.tv*_in1k": "BSD 3-Clause",
    "timm/vgg16.tv_in1k": "BSD 3-Clause",
    "timm/swin_*.ms_*": "MIT",
    "timm/convnext_*": "Apache 2.0",
    "timm/resnet??.*": "Apache 2.0",
    "timm/resnet???.*": "Apache 2.0",
    "timm/resnext*": "Apache 2.0",
    "timm/mobilenetv3_large_100.*": "Apache 2.0",
    "timm/vit_*dinov2.*": "Apache 2.0",
    "timm/vit_*.dino": "Apache 2.0",
    "timm/samvit_*": "Apache 2.0",
}
PREFIX = "hf:"
NAME = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:@([\w.-]+))?(?:/([\w./-]+))?")


def is_repository(name: str) -> bool:
    """Whether a name of the hub has no file in it.

    >>> is_repository("hf:me/mine"), is_repository("hf:me/mine/model.pth")
    (True, False)
    """
    match = NAME.fullmatch(name)
    return match is not None and match[3] is None


def fetch(name: str) -> pathlib.Path:
    """Return the local file of a hub name, downloaded if it is not there yet.

    Raises ValueError for a name of another form and for a file whose contents are not
    what the hub says, FileNotFoundError, which says what to download by hand, where the
    hub cannot be reached or lacks it, and ImportError without huggingface_hub.
    """
    match = NAME.fullmatch(name)
    if match is None:
        raise ValueError(
            f"{name!r}: expected hf:OWNER/REPOSITORY, then "
            "@REVISION and /FILE where they are not main and model.safetensors"
        )
    repository, revision, file = match[1], match[2], match[3] or "model.safetensors"
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise ImportError(
            f"{name!r} needs the package huggingface_hub: install "
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
            f"{name!r} is not in the cache and could not be "
            f"downloaded ({reason}): check the name; or, where there is no network, "
            f"download {url} on another machine and give the path of that file"
        ) from error
    check(path)
    say_licence(repository)
    return path


@functools.cache
def say_licence(repository: str) -> None:
    """Log the licence of a repository's weights, once a process."""
    found = licence(repository)
    if found is None:
        log.info("%s: see its page on the hub for the weights' licence", repository)
    elif "NC" in found or "Noncommercial" in found:
        log.warning(
            "%s: the weights are under %s, NOT for commercial use", repository, found
        )
    else:
        log.info("%s: the weights are under %s", repository, found)


def licence(repository: str) -> str | None:
    """The licence of a repository's weights by `LICENCES`; None: not known here.

    >>> licence("timm/vit_base_patch16_224.mae")
    'CC BY-NC 4.0'
    """
    patterns = LICENCES.items()
    return next((x for p, x in patterns if fnmatch.fnmatch(repository, p)), None)


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
