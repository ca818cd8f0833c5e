"""A stand-in of the Hub's HTTP interface: repositories, large files, commits, as huggingface_hub asks for them."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_" + "t" * 30


class Hub:
    """What was sent: repository -> kind, privacy and files; large files by their hash."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, Any]] = {}
        self.objects: dict[str, bytes] = {}
        self.commits: list[str] = []
        self.address = ""


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self, value: Any, status: int = 200) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def do_POST(self) -> None:
            body = self._body()
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._answer({"error": "Invalid credentials"}, 401)
            elif self.path == "/api/repos/create":
                self._create(json.loads(body))
            elif self.path == "/api/validate-yaml":
                head = json.loads(body)["content"].split("---")[1]
                errors = [] if isinstance(yaml.safe_load(head), dict) else [{"message": "no metadata"}]
                self._answer({"errors": errors, "warnings": []}, 400 if errors else 200)
            elif "/preupload/" in self.path:
                files = json.loads(body)["files"]
                large = (".safetensors", ".parquet")
                modes = [{"path": one["path"], "uploadMode": "lfs" if one["path"].endswith(large) else "regular"} for one in files]
                self._answer({"files": [{**one, "shouldIgnore": False, "oid": None} for one in modes]})
            elif self.path.endswith("/info/lfs/objects/batch"):
                found = [{**one, "actions": {"upload": {"href": f"{hub.address}/lfs/{one['oid']}"}}} for one in json.loads(body)["objects"]]
                self._answer({"transfer": "basic", "objects": found})
            elif "/commit/" in self.path:
                self._commit([json.loads(line) for line in body.splitlines() if line])
            else:
                self._answer({"error": f"unknown {self.path}"}, 404)

        def do_PUT(self) -> None:
            content = self._body()
            oid = self.path.rsplit("/", 1)[-1]
            assert hashlib.sha256(content).hexdigest() == oid
            hub.objects[oid] = content
            self._answer({})

        def _create(self, asked: dict[str, Any]) -> None:
            kind = asked.get("type") or "model"
            name = f"{asked['organization']}/{asked['name']}"
            if asked["organization"] == "others":
                self._answer({"error": "You don't have the rights to create a repo under others"}, 403)
                return
            hub.repos.setdefault(
                name, {"kind": kind, "private": asked.get("visibility") == "private", "files": {}, "sdk": asked.get("sdk")}
            )
            prefix = {"model": "", "dataset": "datasets/", "space": "spaces/"}[kind]
            self._answer({"url": f"{hub.address}/{prefix}{name}", "name": name, "id": name})

        def _commit(self, lines: list[dict[str, Any]]) -> None:
            kind, *rest = self.path.removeprefix("/api/").split("/")
            repo = hub.repos["/".join(rest[:2])]
            assert kind == f"{repo['kind']}s"
            for line in lines:
                value = line["value"]
                if line["key"] == "header":
                    hub.commits.append(value["summary"])
                elif line["key"] == "file":
                    repo["files"][value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    repo["files"][value["path"]] = hub.objects[value["oid"]]
            self._answer({"commitUrl": f"{hub.address}/{'/'.join(rest[:2])}/commit/1", "commitOid": "1" * 40, "success": True})

        def log_message(self, *args: Any) -> None:
            pass

    return Handler


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Serve until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
