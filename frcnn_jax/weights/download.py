"""Files from the web: resumed, bounded in size, compared with a digest, and cached.

`fetch(url)` gives a local path. The cache is `FRCNN_JAX_CACHE`, or
`~/.cache/frcnn_jax`; a file lies there under its host and path, so that it can be put
there by hand. What has arrived is kept in `NAME.part` and the next call goes on from
there.
"""

import fcntl
import hashlib
import http.client
import logging
import os
import pathlib
import re
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)
MOST = 4 << 30  # bytes that a file may have whose size nobody has stated
TRIES = 3
WAIT = 30.0  # seconds without an answer
PAUSE = 1.0  # seconds before the second try, twice that before the third
BROKEN = (
    *(urllib.error.URLError, ConnectionError, TimeoutError, ssl.SSLError),
    http.client.HTTPException,
)


def cache() -> pathlib.Path:
    """The folder of downloaded files: `FRCNN_JAX_CACHE`, or `~/.cache/frcnn_jax`."""
    default = pathlib.Path.home() / ".cache" / "frcnn_jax"
    return pathlib.Path(os.environ.get("FRCNN_JAX_CACHE") or default)


def place(url: str) -> pathlib.Path:
    """Where the file of a URL lies in the cache.

    Raises ValueError for what is no http or https URL of a file.
    """
    parts = urllib.parse.urlsplit(url)
    names = [n for n in urllib.parse.unquote(parts.path).split("/") if n]
    odd = {"..", "."} & set(names) or any("\0" in n for n in names)
    if parts.scheme not in ("http", "https") or not parts.hostname or not names or odd:
        raise ValueError(f"{url!r}: expected https://HOST/PATH/FILE")
    if parts.query:
        names.insert(-1, hashlib.sha256(parts.query.encode()).hexdigest()[:8])
    return cache().joinpath(parts.netloc.rpartition("@")[2].replace(":", "_"), *names)


def fetch(url: str, *, digest: str = "", mib: float = 0.0) -> pathlib.Path:
    """Return the local file of a URL, downloaded if it is not in the cache.

    `digest` is "sha256:" or "md5:" and the first digits that somebody has published;
    without one the SHA-256 of the first download is kept beside the file and compared
    from then on. `mib` is the size in MiB to three decimals, where it is known. Raises
    FileNotFoundError, which says where to put the file by hand, where the server cannot
    be reached or breaks off; ValueError for another size or digest.
    """
    path = place(url)
    if path.is_file():
        _check(path, digest, cure="delete the file, and the next run downloads it")
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with _beside(path, ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be at it
        if not path.is_file():
            part = _download(url, path, digest=digest, mib=mib)
            try:
                _check(part, digest, cure="the download was deleted; try again later")
            except ValueError:
                _forget(part)
                raise
            if not digest:
                _beside(path, ".sha256").write_text(_digest(part, "sha256"))
            part.replace(path)
            _forget(part)
    return path


def _download(url: str, path: pathlib.Path, *, digest: str, mib: float) -> pathlib.Path:
    """The whole file as `NAME.part`, in up to `TRIES` connections."""
    part, reason = _beside(path, ".part"), ""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(PAUSE * attempt)
        try:
            _receive(url, part, digest=digest, mib=mib)
            return part
        except urllib.error.HTTPError as error:
            reason = f"HTTP status {error.code}: {error.reason}"
            error.close()
            if error.code == 416:  # there is no such range: begin again
                _forget(part)
            elif error.code < 500:
                break
        except BROKEN as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        log.warning("%s: %s", url, reason)
    kept = part.stat().st_size if part.is_file() else 0
    goes_on = f"; {kept:,} bytes are kept, the next run goes on there" if kept else ""
    raise FileNotFoundError(
        f"{url} could not be downloaded ({reason}){goes_on}. Where there is no "
        f"network, download it on another machine and put it at {path}"
    )


def _receive(url: str, part: pathlib.Path, *, digest: str, mib: float) -> None:
    """Append what is missing to `part`, or begin again where it cannot be resumed."""
    tag = _beside(part, ".tag")
    have = part.stat().st_size if part.is_file() else 0
    known = tag.read_text() if tag.is_file() else ""
    headers = {"User-Agent": "frcnn_jax", "Accept-Encoding": "identity"}
    if have and (known or digest):
        headers["Range"] = f"bytes={have}-"
        if known:
            headers["If-Range"] = known
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.build_opener(_Redirects).open(request, timeout=WAIT) as answer:
        begins = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
        if answer.status != 206 or not begins or int(begins[1]) != have:
            if answer.status == 206:
                raise ConnectionError("the server sent another range than was asked")
            have = 0
        length = answer.headers.get("Content-Length", "")
        total = have + int(length) if length.isdecimal() else 0
        most = int((mib + 0.01) * 2**20) if mib else MOST
        if total > most or (mib and total and abs(total / 2**20 - mib) > 0.01):
            raise ValueError(
                f"{url} has {total:,} bytes, expected "
                + (f"{mib:.3f} MiB" if mib else f"at most {MOST:,}")
                + ": it is another file than was published; nothing was downloaded"
            )
        strong = answer.headers.get("ETag", "")
        tag.write_text("" if strong.startswith("W/") else strong)
        tell = progress(part.name.removesuffix(".part"), total)
        with part.open("ab" if have else "wb") as file:
            while chunk := answer.read(1 << 18):
                have += len(chunk)
                if have > most:
                    raise ValueError(
                        f"{url} sends more than the {most:,} bytes that were expected; "
                        f"{part} is what arrived: delete it"
                    )
                file.write(chunk)
                tell(have)
    if have < total:
        raise ConnectionError(f"it broke off at {have:,} of {total:,} bytes")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to http and https alone, and from https to https alone."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        """The next request; ConnectionError for a place that is not followed."""
        there, here = (urllib.parse.urlsplit(u).scheme for u in (newurl, req.full_url))
        if there not in ("http", "https") or (here == "https" and there != "https"):
            raise ConnectionError(f"the server leads to {newurl!r}, which is not taken")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def progress(name: str, total: int) -> Callable[[int], None]:
    """A function that says every few seconds how much has arrived.

    It says so in the log, or on stderr where nobody reads the log.
    """
    start = last = time.monotonic()
    size = f" of {total / 1e6:.0f}" if total else ""

    def say(text: str, *values: Any) -> None:
        if log.isEnabledFor(logging.INFO):
            log.info(text, *values)
        else:
            print(text % values, file=sys.stderr)

    say("downloading %s%s", name, f", {total / 1e6:.0f} MB" if total else "")

    def tell(have: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= 5 or (total and have >= total):
            last, rate = now, have / max(now - start, 1e-3)
            say("%s: %.0f%s MB, %.1f MB/s", name, have / 1e6, size, rate / 1e6)

    return tell


def _check(path: pathlib.Path, digest: str, *, cure: str) -> None:
    """ValueError unless a file has the digest that was published, or was kept."""
    kept = _beside(path, ".sha256")
    if not digest and kept.is_file():
        digest = f"sha256:{kept.read_text()}"
    kind, _, expected = digest.partition(":")
    if expected and not (found := _digest(path, kind)).startswith(expected):
        raise ValueError(
            f"{path} is not the file that was published: its {kind} is {found}, "
            f"expected {expected}{'...' if len(expected) < 32 else ''}: {cure}"
        )


def _digest(path: pathlib.Path, kind: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def _beside(path: pathlib.Path, suffix: str) -> pathlib.Path:
    return path.with_name(path.name + suffix)


def _forget(part: pathlib.Path) -> None:
    for path in (part, _beside(part, ".tag")):
        path.unlink(missing_ok=True)
