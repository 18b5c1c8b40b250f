"""A Hugging Face Hub for tests: in memory, on this machine, from the standard library alone.

It answers the part of the Hub's HTTP API that the real clients (`huggingface_hub`, `transformers`, `datasets`) use to
create, fill, list and read repositories, with the error codes that they turn into their exceptions. It does not speak
git, and large files travel by git-LFS only, so a client needs `HF_HUB_DISABLE_XET=1`. Being a simulation, it can show
that the client's calls are right, not that the real Hub would take them.

```python
>>> with LocalHub() as hub:
...     hub.create_repo("alice/rows", "datasets", files={"train.parquet": content})
...     hub.fail("POST", "/commit/", status=503)  # the next commit, once
...     hub.cut("GET", "/resolve/")  # the connection, in the middle of the next file
...     run_a_client(HF_ENDPOINT=hub.url, HF_TOKEN="hf_rw")  # "hf_rw": alice, may write; "hf_ro": bob, may only read
...     hub.files("alice/rows", "datasets")
```
"""

import base64
import contextlib
import fnmatch
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


CUT = 0  # in place of a status: half an answer
ANY = "*"  # in place of a method
LFS_SIZE = 10 * 1024 * 1024
LFS_PATTERNS = ("*.arrow", "*.bin", "*.gz", "*.parquet", "*.png", "*.pt", "*.safetensors", "*.tar", "*.wav", "*.zip")
REPO = r"(?P<repo_id>[\w.\-]+/[\w.\-]+)"
API = rf"/api/(?P<kind>models|datasets|spaces)/{REPO}"
FILES = rf"/(?:(?P<kind>datasets|spaces)/)?{REPO}"
REVISION = r"(?P<revision>[^/]+)"


@dataclass(frozen=True)
class User:
    name: str
    can_write: bool = True
    organizations: tuple[str, ...] = ()

    def owns(self, repo_id: str) -> bool:
        return repo_id.split("/")[0] in (self.name, *self.organizations)


@dataclass(frozen=True)
class File:
    content: bytes
    is_lfs: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        size = len(self.content)
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {size}\n".encode()

    @property
    def blob_id(self) -> str:
        stored = self.pointer if self.is_lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()


@dataclass(frozen=True)
class Commit:
    commit_id: str
    tree: dict[str, File]
    title: str
    author: str
    date: str
    parent: "Commit | None"


@dataclass
class Repo:
    kind: str
    repo_id: str
    private: bool
    gated: bool = False
    branches: dict[str, Commit] = field(default_factory=dict)

    def commit(self, branch: str, tree: dict[str, File], title: str, author: str) -> Commit:
        parent = self.branches.get(branch)
        seed = [parent and parent.commit_id, title, time.time_ns(), sorted((p, f.blob_id) for p, f in tree.items())]
        commit_id = hashlib.sha1(json.dumps(seed).encode()).hexdigest()
        date = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
        self.branches[branch] = Commit(commit_id, tree, title, author, date, parent)
        return self.branches[branch]

    def resolve(self, revision: str) -> Commit | None:
        if revision in self.branches:
            return self.branches[revision]
        return next((c for head in self.branches.values() for c in history(head) if c.commit_id == revision), None)


def history(commit: Commit | None) -> Iterable[Commit]:
    while commit is not None:
        yield commit
        commit = commit.parent


@dataclass
class Fault:
    method: str
    path_pattern: str
    status: int
    times: int
    after: int = 0


class HubError(Exception):
    """A refusal. `code` is the `X-Error-Code` from which the client picks the exception that it raises."""

    def __init__(self, status: int, message: str, code: str | None = None):
        self.status, self.message, self.code = status, message, code


class LocalHub:
    """A Hub that listens on a free port of this machine while the `with` block lasts.

    `requests` records `(method, path, status)` of everything that was asked.
    """

    def __init__(self, tokens: dict[str, User] | None = None):
        default = {"hf_rw": User("alice", organizations=("acme",)), "hf_ro": User("bob", can_write=False)}
        self.tokens = default if tokens is None else tokens
        self.repos: dict[tuple[str, str], Repo] = {}
        self.lfs_objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, int]] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        port = self.server.server_address[1]
        # large files lie on another host, as at the Hub, where the client must not send its token
        self.url, self.cdn_url = f"http://127.0.0.1:{port}", f"http://localhost:{port}"

    def start(self) -> None:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def __enter__(self) -> "LocalHub":
        self.start()
        return self

    def __exit__(self, *exception):
        self.stop()

    def create_repo(
        self,
        repo_id: str,
        kind: str = "models",
        private: bool = False,
        files: dict[str, bytes] | None = None,
        gated: bool = False,
    ) -> Repo:
        """Create a repository without a client, and put `files` (path to content) into it."""
        repo = self.repos[kind, repo_id] = Repo(kind, repo_id, private, gated)
        tree = {path: File(content, is_lfs(path, len(content))) for path, content in (files or {}).items()}
        self.lfs_objects |= {file.sha256: file.content for file in tree.values() if file.is_lfs}
        attributes = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS)
        repo.commit("main", {".gitattributes": File(attributes.encode()), **tree}, "initial commit", "alice")
        return repo

    def files(self, repo_id: str, kind: str = "models", revision: str = "main") -> dict[str, bytes]:
        """What a repository holds, without the `.gitattributes` that the Hub puts there."""
        tree = self.repos[kind, repo_id].resolve(revision).tree
        return {path: file.content for path, file in tree.items() if path != ".gitattributes"}

    def commits(self, repo_id: str, kind: str = "models", revision: str = "main") -> list[str]:
        """Titles of a repository's commits, the newest first."""
        return [commit.title for commit in history(self.repos[kind, repo_id].resolve(revision))]

    def fail(self, method: str, path_pattern: str, status: int = 503, times: int = 1, after: int = 0) -> None:
        """Answer the next `times` requests of `method` whose path matches `path_pattern` with `status`; those that come
        first are let through, `after` in number."""
        self.faults.append(Fault(method, path_pattern, status, times, after))

    def cut(self, method: str, path_pattern: str, times: int = 1, after: int = 0) -> None:
        """Send only half of the next `times` answers to such requests, and close the connection."""
        self.faults.append(Fault(method, path_pattern, CUT, times, after))


def is_lfs(path: str, size: int) -> bool:
    return size >= LFS_SIZE or any(fnmatch.fnmatch(path, pattern) for pattern in LFS_PATTERNS)


ROUTES: list[tuple[str, re.Pattern, Callable]] = []


def route(method: str, pattern: str):
    def register(function):
        ROUTES.append((method, re.compile(pattern + r"/?\Z"), function))
        return function

    return register


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # headers and body leave in two writes: without this each small answer waits for a delayed acknowledgement
    disable_nagle_algorithm = True
    hub: LocalHub

    # the way of a request

    def answer(self):
        url = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        method = "GET" if self.command == "HEAD" else self.command
        # only writes are serialized: a slow reader of a large file must not block the others
        guard = contextlib.nullcontext() if method == "GET" else self.hub.lock
        try:
            self.payload, self.is_cut = self.read_body(), False
            with guard:
                self.meet_fault(url.path)
                self.user = self.authenticate()
                for route_method, pattern, function in ROUTES:
                    if route_method == method and (match := pattern.match(url.path)):
                        arguments = {k: unquote(v) for k, v in match.groupdict().items() if v is not None}
                        return function(self, **arguments)
                raise HubError(404, f"The local Hub has no route for {self.command} {url.path}")
        except HubError as error:
            headers = {"X-Error-Code": error.code, "X-Error-Message": error.message}
            self.send_json({"error": error.message}, error.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def handle_one_request(self):
        try:
            super().handle_one_request()
        except (BrokenPipeError, ConnectionResetError):  # clients that stream stop reading when they have enough
            self.close_connection = True

    def log_message(self, *arguments):
        pass

    def read_body(self) -> bytes:
        if "Content-Length" not in self.headers and self.headers.get("Transfer-Encoding"):
            raise HubError(411, "The local Hub wants a Content-Length")
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def meet_fault(self, path: str) -> None:
        with self.hub.lock:
            for fault in self.hub.faults:
                meant = fault.method in (self.command, ANY) and re.search(fault.path_pattern, path)
                if fault.times > 0 and meant:
                    if fault.after > 0:
                        fault.after -= 1
                        continue
                    fault.times -= 1
                    if fault.status != CUT:
                        raise HubError(fault.status, "injected fault")
                    self.is_cut = self.close_connection = True

    def authenticate(self) -> User | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        if token and token not in self.hub.tokens:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.hub.tokens.get(token)

    def send(
        self, status: int, body: bytes = b"", content_type: str = "application/json", headers: dict | None = None
    ):
        self.hub.requests.append((self.command, self.path, status))  # before the answer, so that a test sees it
        self.send_response(status)
        headers = {"Content-Type": content_type, "Content-Length": len(body)} | (headers or {})
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if self.is_cut else body)

    def send_json(self, answer, status: int = 200, headers: dict | None = None):
        self.send(status, json.dumps(answer).encode(), headers=headers)

    def send_content(self, content: bytes, etag: str, headers: dict | None = None):
        headers = {"Accept-Ranges": "bytes", "ETag": f'"{etag}"'} | (headers or {})
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            return self.send(200, content, "application/octet-stream", headers)
        first, last = wanted.groups()
        size = len(content)
        start = int(first) if first else max(0, size - int(last))
        stop = min(int(last) + 1, size) if first and last else size
        if start >= size:
            return self.send(416, headers={"Content-Range": f"bytes */{size}"})
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        self.send(206, content[start:stop], "application/octet-stream", headers)

    # who may do what

    def repo(self, kind: str, repo_id: str, write: bool = False) -> Repo:
        repo = self.hub.repos.get((kind, repo_id))
        if repo is None or (repo.private and not (self.user and self.user.owns(repo_id))):
            # a private repository and a missing one look alike. The client reads this from a bare 401 over https only
            status, message = (404, "Repository not found") if self.user else (401, "Invalid username or password.")
            raise HubError(status, message, "RepoNotFound")
        if write:
            self.check_write(repo_id)
        return repo

    def check_write(self, repo_id: str) -> None:
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        if not (self.user.can_write and self.user.owns(repo_id)):
            raise HubError(403, f"You don't have the rights to write to {repo_id} with this token")

    def commit_at(self, repo: Repo, revision: str) -> Commit:
        commit = repo.resolve(revision)
        if commit is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # accounts and repositories

    @route("GET", r"/api/whoami-v2")
    def whoami(self):
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        organizations = [{"type": "org", "name": name, "fullname": name} for name in self.user.organizations]
        token = {"displayName": "test", "role": "write" if self.user.can_write else "read"}
        auth = {"type": "access_token", "accessToken": token}
        name = self.user.name
        self.send_json({"type": "user", "id": name, "name": name, "orgs": organizations, "auth": auth})

    @route("POST", r"/api/repos/create")
    def create(self):
        wanted = json.loads(self.payload)
        kind = (wanted.get("type") or "model") + "s"
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        repo_id = f"{wanted.get('organization') or self.user.name}/{wanted['name']}"
        self.check_write(repo_id)
        answer = {"url": f"{self.hub.url}/{'' if kind == 'models' else kind + '/'}{repo_id}", "name": repo_id}
        if (kind, repo_id) in self.hub.repos:
            return self.send_json(answer | {"error": f"You already created {repo_id}"}, 409)
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.hub.create_repo(repo_id, kind, private)
        self.send_json(answer)

    # upload: the client asks how, sends large files, then commits

    @route("POST", r"/api/validate-yaml")
    def validate_yaml(self):
        self.send_json({"errors": [], "warnings": []})

    @route("POST", rf"{API}/preupload/{REVISION}")
    def preupload(self, kind, repo_id, revision):
        commit = self.commit_at(self.repo(kind, repo_id, write=True), revision)
        answers = []
        for wanted in json.loads(self.payload)["files"]:
            mode = "lfs" if is_lfs(wanted["path"], wanted["size"]) else "regular"
            answer = {"path": wanted["path"], "uploadMode": mode, "shouldIgnore": False}
            if existing := commit.tree.get(wanted["path"]):
                answer["oid"] = existing.sha256 if existing.is_lfs else existing.blob_id
            answers.append(answer)
        self.send_json({"files": answers, "commitOid": commit.commit_id})

    @route("POST", rf"{FILES}\.git/info/lfs/objects/batch")
    def lfs_batch(self, repo_id, kind="models"):
        wanted = json.loads(self.payload)
        self.repo(kind, repo_id, write=wanted["operation"] == "upload")
        objects = [{"oid": entry["oid"], "size": entry["size"]} for entry in wanted["objects"]]
        for entry in objects:
            if wanted["operation"] == "upload" and entry["oid"] not in self.hub.lfs_objects:
                entry["actions"] = {"upload": {"href": f"{self.hub.cdn_url}/lfs/{entry['oid']}"}}
        body = json.dumps({"transfer": "basic", "objects": objects}).encode()
        self.send(200, body, "application/vnd.git-lfs+json")

    @route("PUT", r"/lfs/(?P<sha256>[0-9a-f]{64})")
    def lfs_upload(self, sha256):
        if hashlib.sha256(self.payload).hexdigest() != sha256:
            raise HubError(400, "The content does not have the announced sha256")
        self.hub.lfs_objects[sha256] = self.payload
        self.send(200)

    @route("POST", rf"{API}/commit/{REVISION}")
    def commit(self, kind, repo_id, revision):
        repo = self.repo(kind, repo_id, write=True)
        head = self.commit_at(repo, revision)
        tree, title = dict(head.tree), ""
        for operation in map(json.loads, self.payload.splitlines()):
            value = operation["value"]
            match operation["key"]:
                case "header":
                    title = value["summary"]
                    if value.get("parentCommit", head.commit_id) != head.commit_id:
                        raise HubError(412, "A commit has happened since. Please refresh and try again.")
                case "file":
                    tree[value["path"]] = File(base64.b64decode(value["content"]))
                case "lfsFile":
                    if value["oid"] not in self.hub.lfs_objects:
                        raise HubError(400, f"{value['path']} points to a large file that was not uploaded")
                    tree[value["path"]] = File(self.hub.lfs_objects[value["oid"]], is_lfs=True)
                case "deletedFile":
                    if tree.pop(value["path"], None) is None:
                        raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
                case "deletedFolder":
                    tree = {p: f for p, f in tree.items() if not p.startswith(value["path"].rstrip("/") + "/")}
                case other:
                    raise HubError(400, f"Unknown operation {other}")
        commit = repo.commit(revision, tree, title, self.user.name)
        url = f"{self.hub.url}/{repo_id}/commit/{commit.commit_id}"
        self.send_json({"success": True, "commitOid": commit.commit_id, "commitUrl": url, "hookOutput": ""})

    # listing and download

    @route("GET", rf"{API}(?:/revision/{REVISION})?")
    def info(self, kind, repo_id, revision="main"):
        repo = self.repo(kind, repo_id)
        commit = self.commit_at(repo, revision)
        answer = {"_id": "0" * 24, "id": repo_id, "sha": commit.commit_id, "private": repo.private}
        answer["gated"] = "auto" if repo.gated else False
        answer |= {"lastModified": commit.date, "createdAt": commit.date, "disabled": False, "tags": []}
        answer |= {"author": repo_id.split("/")[0], "downloads": 0, "likes": 0}
        self.send_json(answer | {"siblings": [{"rfilename": path} for path in sorted(commit.tree)]})

    def describe(self, commit: Commit, path: str) -> dict:
        answer = {"path": path, "lastCommit": {"id": commit.commit_id, "title": commit.title, "date": commit.date}}
        file = commit.tree.get(path)
        if file is None:
            return answer | {"type": "directory", "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}
        if file.is_lfs:
            size = len(file.content)
            answer["lfs"] = {"oid": file.sha256, "size": size, "pointerSize": len(file.pointer)}
        return answer | {"type": "file", "size": len(file.content), "oid": file.blob_id}

    @route("GET", rf"{API}/tree/{REVISION}(?:/(?P<folder>.+))?")
    def tree(self, kind, repo_id, revision, folder=""):
        commit = self.commit_at(self.repo(kind, repo_id), revision)
        prefix = folder.rstrip("/") + "/" if folder else ""
        recursive = self.query.get("recursive", "").lower() in ("true", "1")
        paths = set()
        for path in commit.tree:
            if path.startswith(prefix):
                parts = path.removeprefix(prefix).split("/")
                depth = len(parts) if recursive else 1
                paths.update(prefix + "/".join(parts[: i + 1]) for i in range(depth))
        if folder and not paths:
            raise HubError(404, f'{folder} does not exist on "{revision}"', "EntryNotFound")
        self.send_json([self.describe(commit, path) for path in sorted(paths)])

    @route("POST", rf"{API}/paths-info/{REVISION}")
    def paths_info(self, kind, repo_id, revision):
        commit = self.commit_at(self.repo(kind, repo_id), revision)
        is_json = "json" in self.headers.get("Content-Type", "")
        wanted = (json.loads(self.payload) if is_json else parse_qs(self.payload.decode())).get("paths", [])
        known = {path for path in wanted if any((name + "/").startswith(path + "/") for name in commit.tree)}
        self.send_json([self.describe(commit, path) for path in wanted if path in known])

    @route("GET", rf"{FILES}/resolve/{REVISION}/(?P<path>.+)")
    def resolve(self, repo_id, revision, path, kind="models"):
        repo = self.repo(kind, repo_id)
        if repo.gated and not (self.user and self.user.owns(repo_id)):
            raise HubError(403 if self.user else 401, f"Access to {repo_id} is restricted.", "GatedRepo")
        commit = self.commit_at(repo, revision)
        headers = {"X-Repo-Commit": commit.commit_id}
        file = commit.tree.get(path)
        if file is None:
            headers |= {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return self.send_json({"error": "Entry not found"}, 404, headers)
        if not file.is_lfs:
            return self.send_content(file.content, file.blob_id, headers)
        headers |= {"X-Linked-Size": len(file.content), "X-Linked-Etag": f'"{file.sha256}"'}
        self.send(302, headers=headers | {"Location": f"{self.hub.cdn_url}/lfs/{file.sha256}"})

    @route("GET", r"/lfs/(?P<sha256>[0-9a-f]{64})")
    def lfs_download(self, sha256):
        if sha256 not in self.hub.lfs_objects:
            raise HubError(404, "No such object")
        self.send_content(self.hub.lfs_objects[sha256], sha256)
