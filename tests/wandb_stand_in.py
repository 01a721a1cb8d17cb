"""A STAND-IN for W&B's API on this machine, for tests: it is not W&B, and answers only what publishing a report asks.

It speaks GraphQL over HTTP on the loopback device, keeps every request, and stores the report it is sent.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = "somebody"


@dataclass
class StandIn:
    """The address of the stand-in, and the requests that it has received."""

    url: str = ""
    queries: list[str] = field(default_factory=list)
    saved: dict[str, Any] = field(default_factory=dict)
    """The variables of the mutation that stores a report."""

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        self.queries.append(query)
        if "upsertView" in query:
            self.saved = variables
            view = {"id": "Vmlldzox", "name": variables["name"], "displayName": variables["displayName"]}
            project = {"id": "p", "name": variables["projectName"], "entityName": variables["entityName"]}
            view |= {"description": variables["description"], "project": project, "spec": variables["spec"]}
            view |= {"createdAt": "2026-01-01T00:00:00", "updatedAt": "2026-01-01T00:00:00", "type": "runs"}
            return {"upsertView": {"view": view, "inserted": True}}
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
            data = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path != "/graphql":
                return self._send({})  # the library's own statistics
            body = json.loads(data)
            return self._send({"data": state.answer(body["query"], body.get("variables") or {})})

        def do_GET(self) -> None:
            self._send({})

        def _send(self, value: Any) -> None:
            data = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
