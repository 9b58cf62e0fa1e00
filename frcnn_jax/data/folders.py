"""Folders as people have them: what is in one, images by name, names of splits.

A format's `recognise(folder) -> Found | None` uses these functions. No function here
returns a path outside the root. Links inside the root are followed: the user made them.
"""

import json
import os
import pathlib
import posixpath
import re
import unicodedata
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

IMAGES = frozenset(
    {
        *(".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".bmp", ".webp"),
        *(".tif", ".tiff", ".jp2", ".pgm", ".ppm"),
    }
)
MAX_FILES = 5_000_000
SHARE = 80  # percent that are trained on where a set has no splits of its own


class Folder(NamedTuple):
    """A folder, and the files below it: relative, with `/`, sorted."""

    root: pathlib.Path
    files: tuple[str, ...]


class Found(NamedTuple):
    """What a format recognises: leaves for its `load`, names of splits, the reason."""

    leaves: Mapping[str, Any]
    splits: tuple[str, ...]
    why: str


def list_folder(root: str | os.PathLike) -> Folder:
    """All files below `root` but hidden ones and those of `__MACOSX`.

    Links to folders are followed, each folder once. FileNotFoundError where there is no
    such folder, ValueError where it holds more than `MAX_FILES` files.
    """
    base = pathlib.Path(root)
    if not base.is_dir():
        raise FileNotFoundError(f"no folder {base}: set data.root")
    found, seen, todo = [], set(), [""]
    while todo:
        inside = todo.pop()
        real = os.path.realpath(base / inside)
        if real in seen:
            continue
        seen.add(real)
        with os.scandir(base / inside) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    continue
                name = f"{inside}/{entry.name}" if inside else entry.name
                (todo if entry.is_dir() else found).append(name)
        if len(found) > MAX_FILES:
            raise ValueError(
                f"{base} holds more than {MAX_FILES:,} files: set data.root to the "
                "folder of the data set alone"
            )
    return Folder(base, tuple(sorted(found)))


def is_image(name: str) -> bool:
    """Whether the suffix of a file's name is that of an image.

    >>> is_image("a/b.JPG"), is_image("a/b.txt")
    (True, False)
    """
    return posixpath.splitext(name)[1].lower() in IMAGES


def few(values: Iterable[Any], most: int = 20) -> str:
    """Values for one line of a message: the first ones, and how many there are.

    >>> few(["cat", "dog"]), few(range(1200), 3)
    ('cat, dog', '0, 1, 2, ... (1200 in all)')
    """
    texts = list(map(str, values))
    more = f", ... ({len(texts)} in all)" if len(texts) > most else ""
    return f"{', '.join(texts[:most]) or 'none'}{more}"


def folder_of(name: str) -> str:
    """The folder of a relative name; empty for the root.

    >>> folder_of("a/b/c.jpg"), folder_of("c.jpg")
    ('a/b', '')
    """
    return posixpath.dirname(name)


def stem(name: str) -> str:
    """The name of a file without folder and suffix.

    >>> stem("a/b.c.jpg")
    'b.c'
    """
    return posixpath.splitext(posixpath.basename(name))[0]


# ----------------------------------------------------------------------- images by name


class Pictures:
    """The images of a folder, found by path, by name, or by stem.

    `inside` limits them to a folder below the root.
    """

    def __init__(self, folder: Folder, inside: str = ""):
        inside = posixpath.normpath(inside) if inside else ""
        inside = "" if inside == "." else inside
        start = f"{inside}/" if inside else ""
        names = [n for n in folder.files if is_image(n) and n.startswith(start)]
        self.root, self._names, self._inside = folder.root, set(names), inside
        self._by_name: dict[str, list[str]] = {}
        self._by_stem: dict[str, list[str]] = {}
        for name in names:
            base = posixpath.basename(name)
            self._by_name.setdefault(_plain(base), []).append(name)
            self._by_stem.setdefault(_plain(stem(base)), []).append(name)

    def find(self, name: str, *, near: str = "", where: object = "") -> str | None:
        r"""The image that `name` means: a path below the root or `near`, or its end.

        A path of another machine (`C:\a\b.jpg`, `/data/b.jpg`) means the image of the
        same last parts, and an address what it encodes (`my%20cat.jpg`, Label Studio's
        `/data/local-files/?d=a.jpg`). ValueError, naming `where` it stands, where
        several fit equally well; None where none does.
        """
        found = self._find(name, near, where)
        if found is None and (other := _decoded(name)) != name:
            found = self._find(other, near, where)
        return found

    def _find(self, name: str, near: str, where: object) -> str | None:
        """`find` of a name as it stands."""
        path = tidy(name)
        for start in dict.fromkeys((near, self._inside, "")):
            if (
                whole := posixpath.normpath(posixpath.join(start, path))
            ) in self._names:
                return whole
        same = self._by_name.get(_plain(posixpath.basename(path)), [])
        exact = [n for n in same if n.endswith(posixpath.basename(path))]
        return _nearest(exact or same, path, near, name, where)

    def of_stem(self, name: str, *, near: str = "", where: object = "") -> str | None:
        """The image whose name without suffix is that of `name`, as `find`."""
        same = self._by_stem.get(_plain(name), [])
        exact = [n for n in same if stem(n) == name]
        return _nearest(exact or same, name, near, name, where)


def _plain(name: str) -> str:
    """A name in the one Unicode form (macOS writes another one), without case."""
    return unicodedata.normalize("NFC", name).casefold()


def _decoded(name: str) -> str:
    """The path that an address means.

    >>> _decoded("my%20cat.jpg"), _decoded("/data/local-files/?d=pets%5Ca.jpg")
    ('my cat.jpg', 'pets\\\\a.jpg')
    """
    return urllib.parse.unquote(name.rpartition("?d=")[2])


def tidy(name: str) -> str:
    r"""A name as it stands in a file: with `/`, and without what leads out of a folder.

    >>> tidy(r"C:\photos\a.jpg"), tidy("../../photos/./a.jpg"), tidy("/a.jpg")
    ('photos/a.jpg', 'photos/a.jpg', 'a.jpg')
    """
    parts = re.sub(r"^[A-Za-z]:(?=[\\/])", "", name).replace("\\", "/").split("/")
    while ".." in parts:
        parts = parts[parts.index("..") + 1 :]
    return "/".join(p for p in parts if p not in ("", "."))


def _nearest(
    names: Sequence[str], path: str, near: str, shown: str, where: object
) -> str | None:
    """The file that shares most last parts with `path`, then most first with `near`."""
    if len(names) < 2:
        return names[0] if names else None

    def rank(name):
        ends = zip(reversed(name.split("/")), reversed(path.split("/")), strict=False)
        starts = zip(name.split("/"), near.split("/"), strict=False)
        return _agree(ends), _agree(starts)

    best = max(map(rank, names))
    first, *others = [n for n in names if rank(n) == best]
    if others:
        raise ValueError(
            f"{where} names the image {shown!r}, which may be {first} or {others[0]}: "
            "set data.images to the folder that is meant"
        )
    return first


def _agree(pairs: Iterable[tuple[str, str]]) -> int:
    """The number of equal pairs before the first unequal one."""
    count = 0
    for a, b in pairs:
        if a != b:
            break
        count += 1
    return count


# ------------------------------------------------------------------------------- splits

_SPLIT = re.compile(
    r"(?<![A-Za-z])(trainval|training|train|validation|valid|val|testing|test|dev)"
    r"([_-]?\d{2,4})?(?![A-Za-z0-9])",
    re.IGNORECASE,
)


def templates(paths: Iterable[str]) -> dict[str, dict[str, str]]:
    """Groups paths that differ only in a split's name: `{template: {split: path}}`.

    A path without such a name is its own template, of the split "all".

    >>> templates(["train/a.json", "test/a.json", "b.json"])
    {'{split}/a.json': {'train': 'train/a.json', 'test': 'test/a.json'}, \
'b.json': {'all': 'b.json'}}
    """
    found: dict[str, dict[str, str]] = {}
    for path in paths:
        names = [m.group() for m in _SPLIT.finditer(path)]
        # the last folder or the file's own name says what the file is
        name = names[-1] if names else ""
        pattern = rf"(?<![A-Za-z]){re.escape(name)}(?![A-Za-z0-9])"
        template = re.sub(pattern, "{split}", path) if name else path
        found.setdefault(template, {})[name or "all"] = path
    return found


def fill(template: str, split: str) -> str:
    """A template with the name of a split in it.

    >>> fill("images/{split}", "val")
    'images/val'
    """
    return template.replace("{split}", split)


def files_of(folder: Folder, template: str) -> dict[str, str]:
    """The files of a folder that a template fits, by split.

    >>> files_of(Folder(pathlib.Path(), ("a_train.csv", "b.csv")), "a_{split}.csv")
    {'train': 'a_train.csv'}
    """
    start, *rest = template.split("{split}")
    pattern = re.escape(start) + "".join(
        (r"(?P<split>[^/]+)" if i == 0 else r"(?P=split)") + re.escape(part)
        for i, part in enumerate(rest)
    )
    matches = ((name, re.fullmatch(pattern, name)) for name in folder.files)
    return {m["split"] if rest else "all": name for name, m in matches if m}


def choose_splits(names: Sequence[str]) -> tuple[str, str, str]:
    """The splits to train and to evaluate on, and why.

    ValueError if the names do not decide it; the flags then have to.

    >>> choose_splits(["test", "train", "valid"])[:2], choose_splits(["all"])[:2]
    (('train', 'valid'), ('all[:80%]', 'all[80%:]'))
    """

    def known(*kinds):
        plain = {n: re.sub(r"([_-]?\d+$)|(^\d{4}_)", "", n).lower() for n in names}
        found = [[n for n in names if plain[n] == kind] for kind in kinds]
        return next((f for f in found if f), [])

    train = known("train", "training", "trainval")
    whole = bool(train) and train == known("trainval")
    tests = ("test", "testing")
    others = () if whole else ("val", "valid", "validation", "dev")
    evaluation = known(*others, *tests)
    if len(train) == 1 and len(evaluation) == 1:
        return train[0], evaluation[0], "the set's own splits"
    if len(train) <= 1 and not evaluation and (train or len(names) == 1):
        name = train[0] if train else names[0]
        why = (
            f"no split to evaluate on: {SHARE} to {100 - SHARE} by a hash of the "
            "images' names (data.group keeps some together)"
        )
        return f"{name}[:{SHARE}%]", f"{name}[{SHARE}%:]", why
    raise ValueError(
        f"the set has the splits {', '.join(sorted(names)) or 'none'}: say which are "
        "meant, --config.data.train_split=... --config.data.eval_split=..."
    )


# -------------------------------------------------------------------------------- files


def contains(file: pathlib.Path, patterns: Iterable[bytes], limit: int = -1) -> bool:
    """Whether all patterns occur in the first `limit` bytes of a file (-1: in all)."""
    try:
        with file.open("rb") as handle:
            data = handle.read(limit)
    except OSError:
        return False
    return all(re.search(pattern, data) for pattern in patterns)


def read_json(file: pathlib.Path) -> Any:
    """What a JSON file holds; ValueError and FileNotFoundError name it."""
    if not file.is_file():
        raise FileNotFoundError(
            f"no annotation file {file}: set data.root or data.annotations"
        )
    try:
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{file} is not JSON: {error}: correct it, or export it again"
        ) from error


_ENCODING = rb"<\?xml[^>]*?\bencoding\s*=\s*[\"']([A-Za-z0-9._-]+)[\"']"


def xml_text(raw: bytes) -> str:
    """The text of an XML file in the encoding that it declares, else in utf-8.

    ValueError where it is not of that encoding, or of one that Python does not know.
    """
    declared = re.match(_ENCODING, raw)
    encoding = declared[1].decode() if declared else "utf-8"
    if encoding.lower().replace("-", "") in ("utf8", "ascii", "usascii"):
        encoding = "utf-8-sig"
    try:
        text = raw.decode(encoding)
    except LookupError:
        raise ValueError(f"it declares the unknown encoding {encoding}") from None
    return re.sub(r"^<\?xml[^>]*\?>", "", text)
