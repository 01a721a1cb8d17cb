"""A STAND-IN for W&B's API on this machine, for tests: it is not W&B.

It answers only what publishing a report, a run and `wandb sync` ask.  It speaks GraphQL over HTTP on the loopback
device, keeps every request, and stores the report and the rows of runs that it is sent.
"""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.wandb_artifacts_stand_in import Artifacts

ENTITY = "somebody"


@dataclass
class StandIn:
    """The address of the stand-in, and the requests that it has received."""

    url: str = ""
    queries: list[str] = field(default_factory=list)
    saved: dict[str, Any] = field(default_factory=dict)
    """The variables of the mutation that stores a report."""
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """The history of every run: its rows, in the places that they were sent for."""
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What every run was said to be, last: its displayName, tags, groupName, jobType and config."""
    summaries: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The last summary of every run."""
    statistics: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """The measurements of the machine of every run."""
    artifacts: Artifacts = field(default_factory=Artifacts)
    sweep: str = ""
    """The yaml of a sweep."""
    tries: list[dict[str, Any]] = field(default_factory=list)
    """The values that an agent of a sweep is still to try, and the program of each."""
    error: int | None = None
    """The status of every answer, if the stand-in refuses all."""
    may_answer: threading.Event = field(default_factory=threading.Event)
    """Cleared while no request is answered."""

    def __post_init__(self) -> None:
        self.may_answer.set()

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        self.queries.append(query)
        if "upsertView" in query:
            self.saved = variables
            view = {"id": "Vmlldzox", "name": variables["name"], "displayName": variables["displayName"]}
            project = {"id": "p", "name": variables["projectName"], "entityName": variables["entityName"]}
            view |= {"description": variables["description"], "project": project, "spec": variables["spec"]}
            view |= {"createdAt": "2026-01-01T00:00:00", "updatedAt": "2026-01-01T00:00:00", "type": "runs"}
            return {"upsertView": {"view": view, "inserted": True}}
        if (answer := self._of_a_run(query, variables)) is not None:
            return answer
        if (answer := self.artifacts.answer(query, variables)) is not None:
            return answer
        if (answer := self._of_an_agent(query, variables)) is not None:
            return answer
        if "internalId" in query:
            return {"project": {"internalId": "UHJvamVjdDox"}}
        if "projects" in query.lower() or "models(" in query:
            project = {
                "id": "p",
                "name": "matquant",
                "entityName": ENTITY,
                "createdAt": "2026-01-01",
                "isBenchmark": False,
            }
            edge = {"node": {**project, "user": viewer()}}
            page = {"edges": [{**edge, "cursor": "c"}], "pageInfo": {"endCursor": "c", "hasNextPage": False}}
            return {"models": page, "projects": page, "entity": {"projects": page}}
        return {
            "viewer": viewer(),
            "serverInfo": {"latestLocalVersionInfo": None, "cliVersionInfo": {"max_cli_version": "9"}},
        }

    def _of_a_run(self, query: str, variables: dict[str, Any]) -> dict[str, Any] | None:
        name = variables.get("name") or variables.get("run")
        project = {"id": "p", "name": variables.get("project"), "entity": {"id": "e", "name": ENTITY}}
        bucket = {"id": "b", "name": name, "historyLineCount": len(self.rows.get(name or "", []))}
        if "upsertBucket" in query:
            assert name is not None
            self.rows.setdefault(name, [])
            self._describe(name, variables)
            facts = {"displayName": name, "description": None, "config": "{}", "sweepName": None, "project": project}
            return {"upsertBucket": {"bucket": bucket | facts, "inserted": True}}
        if "RunResumeStatus" in query:
            tail = json.dumps([json.dumps(self.rows[name][-1])] if self.rows.get(name or "") else [])
            ends = {"logLineCount": 0, "eventsLineCount": 0, "historyTail": tail, "eventsTail": "[]"}
            facts = {"displayName": name, "summaryMetrics": "{}", "config": "{}", "tags": [], "wandbConfig": '{"t": 1}'}
            return {"model": project | {"bucket": bucket | ends | facts if name in self.rows else None}}
        if "createRunFiles" in query:
            files = [{"name": file, "uploadUrl": f"{self.url}/{file}"} for file in variables["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        return None

    def _describe(self, name: str, variables: dict[str, Any]) -> None:
        given = {key: value for key, value in variables.items() if value is not None}
        if "config" in given:
            given["config"] = {key: item["value"] for key, item in json.loads(given["config"]).items()}
        self.runs.setdefault(name, {}).update(given)

    def _of_an_agent(self, query: str, variables: dict[str, Any]) -> dict[str, Any] | None:
        if "SweepWithRuns" in query:
            return {"project": {"sweep": {"id": "s", "name": "s", "config": self.sweep, "runs": {"edges": []}}}}
        if "CreateAgent" in query:
            return {"createAgent": {"agent": {"id": "agent"}}}
        if "agentHeartbeat" in query:
            is_at_work = any(json.loads(variables["runState"]).values())
            commands = [] if is_at_work or not self.tries else [self.tries.pop(0)]
            return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps(commands)}}
        return None

    def stream(self, run: str, files: dict[str, Any]) -> None:
        """Writes rows where they are sent for: rows that were there before are lost, as they would be."""
        for line in files.get("wandb-summary.json", {}).get("content", []):
            self.summaries[run] = json.loads(line)
        self.statistics.setdefault(run, []).extend(
            map(json.loads, files.get("wandb-events.jsonl", {}).get("content", []))
        )
        if (sent := files.get("wandb-history.jsonl")) is not None:
            rows = self.rows.setdefault(run, [])
            rows[sent["offset"] : sent["offset"] + len(sent["content"])] = map(json.loads, sent["content"])
        if (sent := files.get("wandb-summary.json")) is not None:
            self.summaries[run] = json.loads(sent["content"][-1])


def viewer() -> dict[str, Any]:
    teams = {"edges": [{"node": {"name": ENTITY}}]}
    return {
        "id": "u",
        "username": ENTITY,
        "email": "somebody@example.org",
        "admin": False,
        "entity": ENTITY,
        "flags": "{}",
        "teams": teams,
        "apiKeys": {"edges": []},
        "deletedAt": None,
        "name": ENTITY,
    }


@contextmanager
def stand_in() -> Iterator[StandIn]:
    """The stand-in at work, on a port of its own."""
    state = StandIn()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            state.may_answer.wait()
            data = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                data = gzip.decompress(data)
            if state.error is not None:
                return self._send({"errors": [{"message": "no"}]}, state.error)
            if self.path.endswith("/file_stream"):
                state.stream(self.path.split("/")[-2], json.loads(data).get("files") or {})
                return self._send({})
            if not self.path.endswith("/graphql"):
                return self._send({})  # the library's own statistics
            body = json.loads(data)
            return self._send({"data": state.answer(body["query"], body.get("variables") or {})})

        def do_GET(self) -> None:
            self._send({})

        def do_PUT(self) -> None:
            state.may_answer.wait()
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.path.startswith("/artifact/"):
                state.artifacts.take(self.path, data)
            self._send({})

        def _send(self, value: Any, status: int = 200) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = state.artifacts.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.may_answer.set()
        server.shutdown()
        server.server_close()
        thread.join()
