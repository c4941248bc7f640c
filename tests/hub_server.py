"""A model hub in one process: what the libraries ask of it, served from folders.

Point ``HF_ENDPOINT`` of a subprocess to ``HubServer(...).url``; huggingface_hub reads
it when it is imported.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "a" * 40
_DATE = "2024-01-01T00:00:00.000Z"


class HubServer:
    """Serve ``repos`` on a free local port until the ``with`` block ends.

    Args:
        repos: folder of each repository, by "models/ID" or "datasets/ID".
        aliases: other names that are redirected, as {"datasets/wikitext":
            "datasets/Salesforce/wikitext"}; by default every owner/name in
            ``repos`` is also known by its name alone.
        gated: repositories of which nobody may read a file.
        delay: seconds to wait before each answer.
        status: answer everything with this HTTP status.

    Attributes:
        url: for ``HF_ENDPOINT``.
        log: (method, path) of each request, in order.

    Repositories that are made there are new folders of ``into``.
    """

    def __init__(
        self,
        repos: Mapping[str, Path],
        *,
        aliases: Mapping[str, str] | None = None,
        gated: frozenset[str] = frozenset(),
        delay: float = 0,
        status: int | None = None,
        into: Path | None = None,
    ) -> None:
        self.repos, self.gated = dict(repos), gated
        if aliases is None:
            aliases = {f"{k.split('/')[0]}/{k.split('/')[-1]}": k for k in repos}
        self.aliases = {k: v for k, v in aliases.items() if k not in repos}
        self.delay, self.status, self.into = delay, status, into
        self.log: list[tuple[str, str]] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> HubServer:
        threading.Thread(
            target=self._server.serve_forever, args=(0.05,), daemon=True
        ).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def files(self, repo: str) -> dict[str, Path]:
        """Return the files of ``repo`` by their path in it."""
        root = self.repos[repo]
        return {
            path.relative_to(root).as_posix(): path
            for path in sorted(root.rglob("*"))
            if path.is_file()
        }


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(size)
        form = parse_qs(self.body.decode())
        url = urlsplit(self.path)
        self.hub.log.append((self.command, url.path))
        time.sleep(self.hub.delay)
        path = unquote(url.path).strip("/")
        if self.hub.status:
            self._send(self.hub.status)
        elif path == "api/repos/create":
            self._create()
        elif path == "api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif found := re.fullmatch(r"api/(models|datasets)", path):
            self._search(found[1], parse_qs(url.query))
        elif path.startswith("api/"):
            self._route(path.removeprefix("api/"), "/api/", form)
        elif path.startswith("datasets/"):
            self._route(path, "/", form)
        elif path:
            self._route(f"models/{path}", "/", form)
        else:
            self._send(200, b"a hub")

    def _route(self, path: str, prefix: str, form: dict[str, list[str]]) -> None:
        """Split ``path`` into repository, action, revision and rest; serve it."""
        for name in (*self.hub.aliases, *self.hub.repos):
            if path == name or path.startswith(f"{name}/"):
                break
        else:
            return self._missing("RepoNotFound", 401)
        rest = path[len(name) :].strip("/")
        if target := self.hub.aliases.get(name):
            kind = "" if prefix == "/" and target.startswith("models/") else target
            target = kind or target.removeprefix("models/")
            location = f"{prefix}{target}/{rest}".rstrip("/")
            return self._send(307, headers={"Location": location})
        action, _, rest = rest.partition("/")
        revision, _, rest = rest.partition("/")
        if action == "auth-check":
            return self._gate(name) or self._send(200)
        if revision not in ("", "main", COMMIT):
            return self._missing("RevisionNotFound")
        if action == "preupload":
            files = json.loads(self.body)["files"]
            as_it_is = {"uploadMode": "regular", "shouldIgnore": False}
            return self._json(
                {"files": [{"path": f["path"], **as_it_is} for f in files]}
            )
        if action == "commit":
            return self._gate(name) or self._commit(name)
        if action == "resolve":
            return self._gate(name) or self._file(name, rest)
        if action == "tree":
            return self._json(self._entries(name, rest))
        if action == "paths-info":
            entries = {entry["path"]: entry for entry in self._entries(name, "")}
            return self._json([entries[p] for p in form["paths"] if p in entries])
        if action in ("", "revision"):
            return self._json(self._info(name))
        return self._missing("EntryNotFound")

    def _create(self) -> None:
        """Make an empty repository, unless it is there or not allowed."""
        asked = json.loads(self.body)
        repo_id = f"{asked.get('organization') or 'me'}/{asked['name']}"
        name, url = f"models/{repo_id}", f"{self.hub.url}/{repo_id}"
        if self.hub.into is None or name in self.hub.gated:
            return self._missing("", 403)
        if name in self.hub.repos:
            return self._send(409, json.dumps({"url": url}).encode())
        self.hub.repos[name] = self.hub.into / repo_id
        self.hub.repos[name].mkdir(parents=True)
        self._json({"url": url})

    def _commit(self, name: str) -> None:
        """Write the files of a commit."""
        for line in self.body.decode().splitlines():
            change = json.loads(line)
            if change["key"] == "file":
                target = self.hub.repos[name] / change["value"]["path"]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(base64.b64decode(change["value"]["content"]))
        page = f"{self.hub.url}/{name.removeprefix('models/')}"
        self._json({"commitUrl": f"{page}/commit/{COMMIT}", "commitOid": COMMIT})

    def _gate(self, name: str) -> bool:
        if name in self.hub.gated:
            self._missing("GatedRepo", 403)
        return name in self.hub.gated

    def _info(self, name: str) -> dict[str, object]:
        repo_id = name.partition("/")[2]
        return {
            "_id": "0" * 24,
            "id": repo_id,
            "modelId": repo_id,
            "sha": COMMIT,
            "private": False,
            "gated": "manual" if name in self.hub.gated else False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "createdAt": _DATE,
            "lastModified": _DATE,
            "siblings": [{"rfilename": path} for path in self.hub.files(name)],
        }

    def _search(self, kind: str, query: dict[str, list[str]]) -> None:
        text = query.get("search", [""])[0].lower()
        names = [name for name in self.hub.repos if name.startswith(f"{kind}/")]
        self._json([self._info(name) for name in names if text in name.lower()])

    def _entries(self, name: str, under: str) -> list[dict[str, object]]:
        entries: dict[str, dict[str, object]] = {}
        for path, file in self.hub.files(name).items():
            if under and not path.startswith(f"{under}/"):
                continue
            for parent in list(Path(path).parents)[:-1]:
                folder = parent.as_posix()
                entries[folder] = {"type": "directory", "path": folder, "oid": COMMIT}
            size, oid = file.stat().st_size, _etag(file)
            entries[path] = {"type": "file", "path": path, "size": size, "oid": oid}
        return list(entries.values())

    def _file(self, name: str, path: str) -> None:
        file = self.hub.files(name).get(path)
        if file is None:
            return self._missing("EntryNotFound")
        body, status = file.read_bytes(), 200
        headers = {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": COMMIT}
        headers["Accept-Ranges"] = "bytes"
        if found := re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(found[1]), min(int(found[2] or 1e15), len(body) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
            body, status = body[first : last + 1], 206
        self._send(status, body, headers)

    def _missing(self, code: str, status: int = 404) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": code}
        if code == "EntryNotFound":
            headers["X-Repo-Commit"] = COMMIT
        self._send(status, b"", headers)

    def _json(self, value: object) -> None:
        headers = {"Content-Type": "application/json"}
        self._send(200, json.dumps(value).encode(), headers)

    def _send(
        self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


def lay_out_hub_cache(
    hub_cache: Path,
    repo_type: str,
    repo_id: str,
    files: Mapping[str, bytes | Path],
    commit: str = COMMIT,
) -> Path:
    """Write ``files`` as huggingface_hub would have cached them; return the snapshot.

    Args:
        hub_cache: the folder ``hub`` in ``HF_HOME``.
        repo_type: "model" or "dataset".
        repo_id: name or owner/name.
        files: content, or the file that holds it, by the path in the repository.
        commit: what the branch main points to.
    """
    repo = hub_cache / "--".join([f"{repo_type}s", *repo_id.split("/")])
    snapshot = repo / "snapshots" / commit
    for folder in (repo / "refs", repo / "blobs", snapshot):
        folder.mkdir(parents=True, exist_ok=True)
    (repo / "refs" / "main").write_text(commit)
    for name, content in files.items():
        data = content.read_bytes() if isinstance(content, Path) else content
        blob = repo / "blobs" / hashlib.sha1(data).hexdigest()
        blob.write_bytes(data)
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(*[".."] * (len(Path(name).parts) + 1), "blobs", blob.name))
    return snapshot
