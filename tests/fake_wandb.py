"""A small W&B server: what `wandb sync` and `wandb.Api` ask of the real one, in memory, with faults on demand.

It knows nothing of quotas, permissions or aliases that move, and enforces one rule of the real server: a row of history
replaces the one at the same place, so that a file that is sent again makes no rows twice.
"""

import base64
import gzip
import json
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

KEY = "f" * 40


def identity(kind: str, name: str) -> str:
    """An id as the real server makes them."""
    return base64.b64encode(f"{kind}:v1:{name}".encode()).decode()


class QuietServer(ThreadingHTTPServer):
    """Clients that hang up are no news."""

    daemon_threads = True

    def handle_error(self, request, client_address) -> None:
        """Say nothing of broken connections, and everything of broken code."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class FakeWandb:
    """Runs, history, files and artifacts that were sent; `address` is what WANDB_BASE_URL has to be."""

    def __init__(self):
        self.lock = threading.RLock()
        self.runs: dict[str, dict] = {}  # "entity/project/run" -> what is known
        self.artifacts: dict[str, dict] = {}  # id -> what is known
        self.files: dict[str, bytes] = {}  # path of an upload -> content
        self.asked: list[str] = []  # operations in the order they were asked
        self.order: list[str] = []  # runs in the order they were first sent
        self.unknown: list[str] = []  # operations that this server does not know
        self.refuse = 0  # status that every request gets; 0: none
        self.slow = 0.0  # s before every answer
        self.drops = 0  # requests from now on whose connection is cut without an answer
        self.drop_once: set[str] = set()  # operations or parts of paths whose next request is cut
        self.commits = True  # False: artifacts stay PENDING for ever
        self.stream_limit = 0  # lines of history of one request that are kept before its connection breaks; 0: all
        self.lose_rows = 0  # rows of history at the end that are dropped without a word
        handler = type("Handler", (Handler,), {"server_state": self})
        self.server = QuietServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Stop answering."""
        self.server.shutdown()
        self.server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """Variables for a client."""
        return {"WANDB_BASE_URL": self.address, "WANDB_API_KEY": KEY, "WANDB_ERROR_REPORTING": "false"}

    def run(self, entity: str, project: str, name: str) -> dict:
        """What is known of a run; made when it is new."""
        path = f"{entity or 'me'}/{project}/{name}"
        if path not in self.runs:
            self.order.append(name)
            self.runs[path] = {
                "id": identity("Run", f"{name}:{project}:{entity or 'me'}"), "name": name, "displayName": name, "project": project,
                "entity": entity or "me", "config": {}, "summary": {}, "history": {}, "events": {}, "log": {}, "tags": [], "group": "",
                "jobType": "", "notes": "", "commit": "", "exitcode": None, "complete": False, "created": len(self.runs), "used": [],
            }  # fmt: skip
        return self.runs[path]

    def by_name(self, name: str) -> dict:
        """A run by its W&B id, whatever project it is in."""
        return next(run for run in self.runs.values() if run["name"] == name)

    def rows(self, name: str) -> list[dict]:
        """The history of a run."""
        return [json.loads(line) for _, line in sorted(self.by_name(name)["history"].items())]

    def logged(self, name: str) -> list[dict]:
        """The artifacts of a run."""
        return [a for a in self.artifacts.values() if self.by_name(name)["id"] in a["runs"]]


def run_fields(run: dict) -> dict:
    """A run as GraphQL gives it: every field that some query wants."""
    state = "running" if not run["complete"] else "finished" if run["exitcode"] == 0 else "failed"
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(1.8e9 + run["created"]))
    keys = {k for line in run["history"].values() for k in json.loads(line)}
    last = max(run["history"], default=None)
    return {
        **{name: run[name] for name in ("id", "name", "displayName", "tags", "group", "jobType", "notes", "commit")},
        "config": json.dumps(run["config"]), "summaryMetrics": json.dumps(run["summary"]), "systemMetrics": "{}", "sweepName": None,
        "state": state, "readOnly": False, "createdAt": moment, "heartbeatAt": moment, "description": "", "projectId": "1",
        "historyLineCount": len(run["history"]), "eventsLineCount": len(run["events"]), "logLineCount": len(run["log"]),
        "historyTail": json.dumps([run["history"][last]] if last is not None else []), "eventsTail": "[]",
        "user": {"name": "me", "username": "me"}, "wandbConfig": '{"t": 1}', "patch": None, "stopped": False,
        "historyKeys": {"sets": [], "keys": {k: {} for k in keys}, "lastStep": _last_step(run)},
        "project": {"id": identity("Project", run["project"]), "name": run["project"], "entity": {"id": "1", "name": run["entity"]}},
    }  # fmt: skip


def _last_step(run: dict) -> int:
    return max((json.loads(line).get("_step", 0) for line in run["history"].values()), default=-1)


class Operations:
    """One method for each GraphQL operation."""

    def __init__(self, state: FakeWandb):
        self.state = state

    def _find(self, v: dict) -> dict | None:
        name = v.get("name") or v.get("run") or v.get("runName") or v.get("runId")
        project, entity = (v.get(k) or v.get(f"{k}Name") or "" for k in ("project", "entity"))
        return self.state.runs.get(f"{entity or 'me'}/{project}/{name}")

    def Viewer(self, v: dict) -> dict:
        """Who has this key."""
        edge = {"node": {"id": "k", "description": ""}}
        viewer = {
            "id": "1", "entity": "me", "username": "me", "email": "me@example.org", "name": "me", "flags": "{}", "admin": False,
            "deletedAt": None, "apiKeys": {"edges": [edge]}, "teams": {"edges": []},
        }  # fmt: skip
        return {"viewer": viewer}

    GetViewer = Viewer

    def GetDefaultEntity(self, v: dict) -> dict:
        """Whose runs without an entity are."""
        return {"viewer": {"id": "1", "entity": "me", "defaultEntity": {"name": "me"}}}

    def ServerFeaturesQuery(self, v: dict) -> dict:
        """No features beyond the oldest."""
        return {"serverInfo": {"features": []}}

    def ServerInfo(self, v: dict) -> dict:
        """Nothing new."""
        return {"serverInfo": {"cliVersionInfo": {}, "latestLocalVersionInfo": None, "features": []}}

    def UpsertBucket(self, v: dict) -> dict:
        """A run begins, or changes."""
        known = {run["id"]: run for run in self.state.runs.values()}
        run = known.get(v.get("id")) or self.state.run(v.get("entity"), v.get("project") or "uncategorized", v["name"])
        inserted = "exitcode" in run and run["exitcode"] is None and not run["config"]
        for mine, theirs in (("displayName", "displayName"), ("group", "groupName"), ("jobType", "jobType"), ("tags", "tags"),
                             ("commit", "commit"), ("notes", "notes")):  # fmt: skip
            if v.get(theirs):
                run[mine] = v[theirs]
        if v.get("config"):
            run["config"] = json.loads(v["config"])
        if v.get("summaryMetrics"):
            run["summary"] = json.loads(v["summaryMetrics"])
        return {"upsertBucket": {"inserted": inserted, "bucket": run_fields(run)}}

    def RunResumeStatus(self, v: dict) -> dict:
        """How far a run has come."""
        run = self._find(v)
        entity, project = v.get("entity") or "me", v.get("project")
        bucket = run_fields(run) if run else None
        return {"model": {"id": "p", "name": project, "entity": {"id": "1", "name": entity}, "bucket": bucket}}

    def RunStoppedStatus(self, v: dict) -> dict:
        """Nobody stops runs."""
        return {"project": {"run": {"stopped": False}}}

    def Run(self, v: dict) -> dict:
        """One run for the public API."""
        run = self._find(v)
        return {"project": {"internalId": "1", "run": run_fields(run) if run else None}}

    def Runs(self, v: dict) -> dict:
        """Runs of a project, in pages."""
        prefix = f"{v.get('entity') or 'me'}/{v['project']}/"
        found = [run for path, run in self.state.runs.items() if path.startswith(prefix)]
        wanted = json.loads(v.get("filters") or "{}")
        found = [run for run in found if all(run.get(name) == value for name, value in wanted.items())]
        if (v.get("order") or "").startswith("-"):
            found.reverse()
        start, size = int(v.get("cursor") or 0), v.get("perPage") or 50
        edges = [{"node": run_fields(run), "cursor": str(i)} for i, run in enumerate(found)][start : start + size]
        page = {"endCursor": str(start + len(edges)), "hasNextPage": start + len(edges) < len(found)}
        found = {"internalId": "1", "runCount": len(found), "readOnly": False, "runs": {"edges": edges, "pageInfo": page}}
        return {"project": found if any(path.startswith(prefix) for path in self.state.runs) else None}

    def RunFullHistory(self, v: dict) -> dict:
        """Rows of history, at most as many as wanted."""
        run = self._find(v)
        rows = [line for _, line in sorted(run["history"].items())][: v.get("samples") or 500]
        return {"project": {"run": {"history": rows}}}

    def RunHistoryKeys(self, v: dict) -> dict:
        """Names of metrics, and the last step."""
        return {"project": {"run": {"historyKeys": run_fields(self._find(v))["historyKeys"]}}}

    def _artifacts(self, v: dict, found: list[dict]) -> dict:
        edges = [{"node": artifact_fields(a)} for a in found]
        page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
        return {"project": {"run": {"artifacts": {"totalCount": len(found), "pageInfo": page, "edges": edges}}}}

    def RunOutputArtifacts(self, v: dict) -> dict:
        """What a run has logged, pending or not."""
        return self._artifacts(v, self.state.logged(v["run"]))

    def RunInputArtifacts(self, v: dict) -> dict:
        """What a run has used."""
        return self._artifacts(v, [self.state.artifacts[i] for i in self._find(v)["used"]])

    def ArtifactMembershipByName(self, v: dict) -> dict:
        """An artifact by its name and alias or version."""
        name, _, alias = v["name"].partition(":")
        found = [
            a for a in self.state.artifacts.values()
            if (a["entity"], a["project"], a["name"]) == (v["entity"], v["project"], name) and a["state"] == "COMMITTED"
            and (alias in a["aliases"] or alias == f"v{a['version']}")
        ]  # fmt: skip
        if not found:
            return {"project": {"artifactCollectionMembership": None}}
        fields = artifact_fields(found[-1])
        membership = {
            "__typename": "ArtifactCollectionMembership", "id": "ms", "versionIndex": fields["versionIndex"], "createdAt": fields["createdAt"],
            "aliases": [], "artifactCollection": fields["artifactSequence"], "artifact": fields,
        }  # fmt: skip
        return {"project": {"artifactCollectionMembership": membership}}

    def RunParquetHistory(self, v: dict) -> dict:
        """Nothing has been exported to Parquet yet: all rows are live."""
        rows = [json.loads(line) for _, line in sorted(self._find(v)["history"].items())]
        return {"project": {"run": {"parquetHistory": {"parquetUrls": [], "liveData": rows}}}}

    def HistoryPage(self, v: dict) -> dict:
        """Rows of history between two steps."""
        run = self._find(v)
        rows = [line for _, line in sorted(run["history"].items())]
        kept = [line for line in rows if v["minStep"] <= json.loads(line)["_step"] < v["maxStep"]]
        return {"project": {"run": {"history": kept[: v.get("pageSize") or 1000]}}}

    def CreateRunFiles(self, v: dict) -> dict:
        """Where files of a run may be put."""
        run = self._find(v)
        names = v.get("files") or []
        files = [{"name": name, "uploadUrl": f"{self.state.address}/upload/{run['id']}/{name}"} for name in names]
        return {"createRunFiles": {"runID": run["id"], "uploadHeaders": [], "files": files}}

    def CreateArtifact(self, v: dict) -> dict:
        """A version of an artifact, new or the one that has this content already."""
        v = v.get("input") or v
        name, project, entity = (v.get(k) for k in ("artifactCollectionName", "projectName", "entityName"))
        name = name or (v.get("artifactCollectionNames") or [""])[0]
        run = self._find({"name": v.get("runName"), "project": project, "entity": entity})
        same = [a for a in self.state.artifacts.values() if (a["name"], a["project"], a["entity"]) == (name, project, entity or "me")]
        found = next((a for a in same if a["digest"] == v["digest"]), None)
        if found is None:
            number = len(self.state.artifacts)
            found = {
                "id": identity("Artifact", str(number)), "name": name, "project": project, "entity": entity or "me", "digest": v["digest"],
                "state": "PENDING", "type": v.get("artifactTypeName"), "version": len(same), "aliases": [], "runs": [], "sends": 0,
                "metadata": v.get("metadata"), "clientID": v.get("clientID"),
            }  # fmt: skip
            self.state.artifacts[found["id"]] = found
        found["sends"] += 1
        if run and run["id"] not in found["runs"]:
            found["runs"].append(run["id"])
        for alias in v.get("aliases") or []:
            name = alias["alias"] if isinstance(alias, dict) else alias
            found["aliases"] += [name] if name not in found["aliases"] else []
        latest = same[-1] if same else None
        sequence = {"id": identity("ArtifactSequence", name), "name": found["name"]}
        sequence["latestArtifact"] = {"id": latest["id"], "versionIndex": latest["version"]} if latest else None
        return {"createArtifact": {"artifact": {"id": found["id"], "state": found["state"], "artifactSequence": sequence}}}

    def CreateArtifactManifest(self, v: dict) -> dict:
        """Where the list of an artifact's files may be put."""
        v = v.get("input") or v
        url = f"{self.state.address}/upload/manifest/{v['artifactID']}"
        file = {"id": "f", "name": v.get("name"), "displayName": v.get("name"), "uploadUrl": url, "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": "m" + v["artifactID"], "file": file}}}

    UpdateArtifactManifest = CreateArtifactManifest

    def CreateArtifactFiles(self, v: dict) -> dict:
        """Where an artifact's files may be put."""
        wanted = (v.get("input") or v).get("artifactFiles") or v.get("artifactFiles") or []
        edges = []
        for one in wanted:
            url = f"{self.state.address}/upload/{one['artifactID']}/{one['name']}"
            edges.append({"node": {
                "id": one["name"], "name": one["name"], "displayName": one["name"], "storagePath": "", "uploadUrl": url,
                "uploadHeaders": [], "uploadMultipartUrls": None, "artifact": {"id": one["artifactID"]},
            }})  # fmt: skip
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def CommitArtifact(self, v: dict) -> dict:
        """An artifact is whole."""
        found = self.state.artifacts[(v.get("input") or v)["artifactID"]]
        if self.state.commits:
            found["state"] = "COMMITTED"
        return {"commitArtifact": {"artifact": {"id": found["id"], "digest": found["digest"]}}}

    def UseArtifact(self, v: dict) -> dict:
        """A run has read an artifact."""
        v = v.get("input") or v
        run = self._find({"name": v.get("runName"), "project": v.get("projectName"), "entity": v.get("entityName")})
        found = self.state.artifacts[v["artifactID"]]
        if found["id"] not in run["used"]:
            run["used"].append(found["id"])
        return {"useArtifact": {"artifact": {"id": found["id"], "digest": found["digest"]}}}


def artifact_fields(artifact: dict) -> dict:
    """An artifact as GraphQL gives it."""
    owner = {"id": "1", "name": artifact["entity"]}
    project = {"id": "p", "name": artifact["project"], "internalId": "1", "entity": owner, "__typename": "Project"}
    kind = {"id": "t", "name": artifact["type"], "__typename": "ArtifactType"}
    sequence = {"id": identity("ArtifactSequence", artifact["name"]), "name": artifact["name"], "project": project, "type": kind,
                "__typename": "ArtifactSequence"}  # fmt: skip
    aliases = [{"id": a, "alias": a, "artifactCollection": sequence, "__typename": "ArtifactAlias"} for a in artifact["aliases"]]
    return {
        "id": artifact["id"], "versionIndex": artifact["version"], "artifactType": kind, "description": None, "metadata": artifact["metadata"],
        "ttlDurationSeconds": -2, "ttlIsInherited": False, "tags": [], "historyStep": None, "state": artifact["state"], "size": 0,
        "digest": artifact["digest"], "commitHash": "c", "fileCount": 1, "createdAt": "2026-11-20T00:00:00Z", "updatedAt": None,
        "aliases": aliases, "artifactSequence": sequence, "artifactCollections": {"edges": []}, "__typename": "Artifact",
        "usedCount": 0,
    }  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    """HTTP in front of the state. It always answers: wandb-core tries again for a minute when nobody does."""

    protocol_version = "HTTP/1.1"
    server_state: FakeWandb

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def body(self) -> bytes:
        """What was sent, chunked or not, packed or not."""
        if "chunked" in (self.headers.get("Transfer-Encoding") or ""):
            data = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

    def answer(self, document: object, status: int = 200) -> None:
        """JSON."""
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def faulty(self, what: str) -> bool:
        """Misbehave if somebody asked for it; True when the request is dealt with."""
        state = self.server_state
        time.sleep(state.slow)
        with state.lock:
            once = {name for name in state.drop_once if name in what}
            state.drop_once -= once
            drop = bool(once) or state.drops > 0
            state.drops -= state.drops > 0
        if drop:
            self.close_connection = True
            self.connection.close()
            return True
        if state.refuse:
            self.answer({"errors": [{"message": f"status {state.refuse}"}]}, state.refuse)
            return True
        if KEY not in self.key():
            self.answer({"errors": [{"message": "no such key"}]}, 401)
            return True
        return False

    def key(self) -> str:
        """The API key of a request; uploads have none and need none."""
        if self.path.startswith("/upload/"):
            return KEY
        kind, _, text = (self.headers.get("Authorization") or "").partition(" ")
        return base64.b64decode(text).decode() if kind == "Basic" else text

    def do_GET(self) -> None:
        """Content that was put before."""
        if self.faulty(self.path):
            return
        self.answer({})

    def do_PUT(self) -> None:
        """An upload."""
        data = self.body()
        if self.faulty(self.path):
            return
        with self.server_state.lock:
            self.server_state.files[self.path.removeprefix("/upload/")] = data
        self.answer({})

    def do_POST(self) -> None:
        """A query or a piece of a run's files."""
        data = json.loads(self.body() or b"{}")
        if self.path.endswith("file_stream"):
            return None if self.faulty(self.path) else self.stream(data)
        found = re.search(r"\b(?:query|mutation)\s+(\w+)", data.get("query", ""))
        operation = found[1] if found else ""
        state = self.server_state
        if self.faulty(operation):
            return None
        with state.lock:
            state.asked.append(operation)
            method = getattr(Operations(state), operation, None)
            if operation.startswith("_") or method is None:
                state.unknown.append(data.get("query", ""))
                return self.answer({"errors": [{"message": f"unknown operation {operation}"}], "data": None})
            return self.answer({"data": method(data.get("variables") or {})})

    def stream(self, data: dict) -> None:
        """Lines of a run's files, each at its place."""
        _, _, entity, project, name, _ = self.path.split("/")
        state = self.server_state
        with state.lock:
            run = state.run(entity, project, name)
            for file, part in (data.get("files") or {}).items():
                if file == "wandb-summary.json":
                    run["summary"] = json.loads(part["content"][0])
                    continue
                place = {"wandb-history.jsonl": "history", "wandb-events.jsonl": "events"}.get(file, "log")
                lines = part.get("content") or []
                lines = lines[: len(lines) - state.lose_rows] if place == "history" and state.lose_rows else lines
                cut = place == "history" and 0 < state.stream_limit < len(lines)
                lines = lines[: state.stream_limit] if cut else lines
                run[place].update({part["offset"] + i: line for i, line in enumerate(lines)})
                if cut:
                    self.close_connection = True
                    time.sleep(1.0)
                    return self.connection.close()
            if data.get("complete") is not None:
                run["complete"], run["exitcode"] = bool(data["complete"]), data.get("exitcode", 0)
        return self.answer({})


@pytest.fixture
def server():
    """A server that is up."""
    state = FakeWandb()
    yield state
    state.close()
