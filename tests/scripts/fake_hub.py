"""The part of the Hugging Face hub's HTTP API that uploads and downloads files."""

import contextlib
import functools
import http.server
import json
import re
import threading


class Handler(http.server.BaseHTTPRequestHandler):
    """Keeps what is uploaded in `server.files`, and serves it again."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server, path = self.server, self.path.partition("?")[0]
        server.asked.append(path)
        if path == "/api/repos/create":
            server.created = json.loads(body)
            return self.answer(dict(url=f"{server.url}/me/mine", name="me/mine"))
        if path == "/api/validate-yaml":
            return self.answer(dict(errors=[], warnings=[]))
        if "/preupload/" in path:
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = ["lfs" if n.endswith(".safetensors") else "regular" for n in names]
            pairs = zip(names, modes, strict=True)
            files = [dict(path=n, uploadMode=m, shouldIgnore=False) for n, m in pairs]
            return self.answer(dict(files=files))
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                dict(x, actions=dict(upload=dict(href=f"{server.url}/put/{x['oid']}")))
                for x in json.loads(body)["objects"]
            ]
            return self.answer(dict(transfer="basic", objects=objects))
        if "/commit/" in path:
            self.commit([json.loads(line) for line in body.splitlines()])
            url = f"{server.url}/me/mine/commit/{'a' * 40}"
            done = dict(success=True, commitOid="a" * 40, commitUrl=url, hookOutput="")
            return self.answer(done)
        return self.send_error(404)

    def commit(self, lines):
        import base64

        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                data = base64.b64decode(value["content"])
                self.server.files[value["path"]] = data
            elif line["key"] == "lfsFile":
                self.server.files[value["path"]] = self.server.blobs[value["oid"]]

    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.blobs[self.path.rpartition("/")[2]] = body
        self.answer({})

    def do_GET(self):
        self.do_HEAD(body=True)

    def do_HEAD(self, body=False):
        match = re.fullmatch(r"/me/mine/resolve/main/(.+)", self.path)
        data = self.server.files.get(match[1]) if match else None
        if data is None:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hash(data) % 10**9}"')
        self.send_header("X-Repo-Commit", "a" * 40)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def answer(self, content):
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def running():
    """The server; `files` has what was committed, `asked` the paths of its calls."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.files, server.blobs, server.asked = {}, {}, []
        server.url = f"http://127.0.0.1:{server.server_port}"
        serve = functools.partial(server.serve_forever, poll_interval=0.01)
        threading.Thread(target=serve, daemon=True).start()
        yield server
        server.shutdown()
