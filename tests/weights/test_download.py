"""Downloads from a server on loopback that serves, breaks off, lies and redirects."""

import hashlib
import http.server
import logging
import threading
from functools import partial

import numpy as np
import pytest

from frcnn_jax.weights import download

DATA = np.random.default_rng(0).bytes(700_000)
SHA = hashlib.sha256(DATA).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """What it does is in the path: /WHAT/x.bin."""

    def do_GET(self):
        what = self.path.split("/")[1]
        server = self.server
        server.asked.append((what, self.headers.get("Range")))
        if what == "away":
            self.send_response(302)
            self.send_header("Location", server.target)
            self.end_headers()
            return
        if what == "gone":
            return self.send_error(404)
        if what == "ill" and len(server.asked) < 2:
            return self.send_error(503)
        data, start = DATA, 0
        given = self.headers.get("Range")
        fresh = self.headers.get("If-Range") in (None, server.tag)
        if given and what != "whole" and fresh:
            start = int(given.removeprefix("bytes=").removesuffix("-"))
            if start >= len(data):
                return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            size = len(data)
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        if what != "silent":
            self.send_header("Content-Length", str(len(data) - start))
        if server.tag:
            self.send_header("ETag", server.tag)
        self.end_headers()
        if what == "breaks" or (what == "once" and len(server.asked) == 1):
            self.wfile.write(data[start : start + 300_000])
            self.connection.close()
            return
        self.wfile.write(data[start:])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("FRCNN_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSE", 0.0)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked, server.tag, server.target = [], '"one"', ""
        server.url = f"http://127.0.0.1:{server.server_port}"
        serve = partial(server.serve_forever, poll_interval=0.01)
        threading.Thread(target=serve, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize("digest", ["", f"sha256:{SHA[:8]}", f"sha256:{SHA}", "md5:"])
def test_a_file_is_downloaded_once_and_told_of(server, caplog, digest):
    caplog.set_level(logging.INFO)
    url = f"{server.url}/whole/x.bin"
    path = download.fetch(url, digest=digest, mib=round(len(DATA) / 2**20, 3))
    assert path.read_bytes() == DATA
    assert path == download.cache() / f"127.0.0.1_{server.server_port}/whole/x.bin"
    assert "downloading x.bin, 1 MB" in caplog.text
    assert "x.bin: 1 of 1 MB" in caplog.text
    assert download.fetch(url, digest=digest) == path
    assert len(server.asked) == 1
    left = {p.name for p in path.parent.iterdir()}
    assert left == {"x.bin", "x.bin.lock"} | ({"x.bin.sha256"} if not digest else set())


def test_progress_goes_to_stderr_where_nobody_reads_the_log(server, capsys):
    download.fetch(f"{server.url}/whole/x.bin")
    assert "downloading x.bin" in capsys.readouterr().err


def test_a_connection_that_breaks_off_is_resumed(server):
    path = download.fetch(f"{server.url}/once/x.bin")
    assert path.read_bytes() == DATA
    assert server.asked == [("once", None), ("once", "bytes=300000-")]


def test_the_next_call_goes_on_where_this_one_ended(server, monkeypatch):
    monkeypatch.setattr(download, "TRIES", 1)
    url = f"{server.url}/breaks/x.bin"
    for kept in ("300,000", "600,000"):
        with pytest.raises(FileNotFoundError, match=f"{kept} bytes are kept") as error:
            download.fetch(url)
    assert f"put it at {download.place(url)}" in str(error.value)
    assert download.fetch(url).read_bytes() == DATA
    assert [r for _, r in server.asked] == [None, "bytes=300000-", "bytes=600000-"]


def test_another_version_of_the_file_is_begun_again(server, monkeypatch):
    monkeypatch.setattr(download, "TRIES", 1)
    with pytest.raises(FileNotFoundError):
        download.fetch(f"{server.url}/once/x.bin")
    server.tag = '"two"'
    assert download.fetch(f"{server.url}/once/x.bin").read_bytes() == DATA


@pytest.mark.parametrize("digest", ["", f"sha256:{SHA}"])
def test_without_a_tag_only_a_digest_lets_it_resume(server, digest):
    server.tag = ""
    path = download.fetch(f"{server.url}/once/x.bin", digest=digest)
    assert path.read_bytes() == DATA
    assert server.asked[1][1] == ("bytes=300000-" if digest else None)


def test_a_part_that_is_too_long_is_begun_again(server):
    part = download.place(f"{server.url}/x/x.bin.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(DATA + b"more")
    path = download.fetch(f"{server.url}/x/x.bin", digest=f"sha256:{SHA}")
    assert path.read_bytes() == DATA


def test_a_server_that_is_ill_is_asked_again(server):
    assert download.fetch(f"{server.url}/ill/x.bin").read_bytes() == DATA


def test_another_size_than_was_published_is_not_downloaded(server, monkeypatch):
    with pytest.raises(ValueError, match=r"has 700,000 bytes, expected 0.100 MiB"):
        download.fetch(f"{server.url}/whole/x.bin", mib=0.1)
    monkeypatch.setattr(download, "MOST", 1000)
    with pytest.raises(ValueError, match="expected at most 1,000"):
        download.fetch(f"{server.url}/whole/x.bin")
    with pytest.raises(ValueError, match="sends more than the 1,000 bytes"):
        download.fetch(f"{server.url}/silent/x.bin")
    assert not download.place(f"{server.url}/whole/x.bin").exists()


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_another_digest_leaves_nothing_behind(server, kind):
    url = f"{server.url}/whole/x.bin"
    found = hashlib.new(kind, DATA).hexdigest()
    with pytest.raises(ValueError, match=f"{kind} is {found}, expected 00ff00...: the"):
        download.fetch(url, digest=f"{kind}:00ff00")
    assert [p.name for p in download.place(url).parent.iterdir()] == ["x.bin.lock"]


@pytest.mark.parametrize("digest", ["", f"sha256:{SHA[:8]}"])
def test_a_damaged_file_of_the_cache_is_named(server, digest):
    path = download.fetch(f"{server.url}/whole/x.bin", digest=digest)
    path.write_bytes(DATA[:-1] + b"x")
    with pytest.raises(ValueError, match="is not the file .* delete the file"):
        download.fetch(f"{server.url}/whole/x.bin", digest=digest)


def test_redirects_are_followed_to_the_web_alone(server, monkeypatch):
    server.target = f"{server.url}/whole/y.bin"
    path = download.fetch(f"{server.url}/away/x.bin")
    assert path.read_bytes() == DATA and path.name == "x.bin"
    monkeypatch.setattr(download, "TRIES", 1)
    for target in ("file:///etc/passwd", "ftp://127.0.0.1/x"):
        server.target = target
        with pytest.raises(FileNotFoundError, match="is not (allowed|taken)"):
            download.fetch(f"{server.url}/away/z.bin")


def test_from_https_to_http_is_not_followed():
    request = download.urllib.request.Request("https://127.0.0.1/x")
    with pytest.raises(ConnectionError, match="leads to 'http://127.0.0.1/y'"):
        download._Redirects().redirect_request(
            request, None, 302, "", {}, "http://127.0.0.1/y"
        )


def test_without_a_network_the_error_says_where_to_put_the_file(server):
    url = f"{server.url}/whole/x.bin"
    server.shutdown()
    server.server_close()
    with pytest.raises(FileNotFoundError) as error:
        download.fetch(url)
    assert "could not be downloaded (" in str(error.value)
    assert f"put it at {download.place(url)}" in str(error.value)
    place = download.place(url)
    place.write_bytes(DATA)
    assert download.fetch(url, digest=f"sha256:{SHA[:8]}") == place


def test_a_file_that_is_not_there_is_asked_for_once(server):
    with pytest.raises(FileNotFoundError, match="HTTP status 404"):
        download.fetch(f"{server.url}/gone/x.bin")
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "url",
    [
        *("file:///etc/passwd", "ftp://a/b", "https://", "https://host", "a/b.pth"),
        *("https://host/../../b", "https://host/%2e%2e/b", "https://host/a%00"),
    ],
)
def test_no_url_of_a_file_is_an_error(url):
    with pytest.raises(ValueError, match="expected https://HOST/PATH/FILE"):
        download.place(url)


def test_places_differ_by_host_path_and_query():
    urls = ("https://a/m/x.pth", "https://b/m/x.pth", "https://a/m/x.pth?v=2")
    assert len({download.place(url) for url in urls}) == 3
    with_name = download.place("https://user:secret@a/m/x.pth")
    assert with_name == download.place(urls[0])
