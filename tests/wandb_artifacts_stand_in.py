"""The part of the STAND-IN for W&B's API that takes artifacts: it is not W&B.

An artifact is created, its manifest and its files are uploaded, and it is committed.  One of the same name and digest
is that version again, as W&B has it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Version:
    """One version of an artifact, as it was sent."""

    id: str
    name: str
    type: str
    digest: str
    metadata: dict[str, Any]
    made_by: str
    """The run that logged it first."""
    used_by: list[str] = field(default_factory=list)
    committed: bool = False
    manifest: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    """What was uploaded; what the manifest names beside is a reference."""

    @property
    def references(self) -> dict[str, str]:
        """The addresses of the files that were not uploaded."""
        return {name: entry["ref"] for name, entry in self.manifest["contents"].items() if "ref" in entry}


@dataclass
class Artifacts:
    """All versions, oldest first, and what they answer to the mutations of W&B's library."""

    url: str = ""
    versions: list[Version] = field(default_factory=list)

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any] | None:
        given = variables.get("input", variables)
        if "query ArtifactType" in query:
            return {"project": None}
        if "mutation CreateArtifactManifest" in query:
            return {"createArtifactManifest": self._manifest(given["artifactID"])}
        if "mutation UpdateArtifactManifest" in query:
            return {"updateArtifactManifest": self._manifest(given["artifactManifestID"])}
        if "mutation CreateArtifactFiles" in query:
            files = given["artifactFiles"]
            edges = [{"node": self._file(one["artifactID"], "file", one["name"])} for one in files]
            return {"createArtifactFiles": {"files": {"edges": edges}}}
        if "mutation CreateArtifact" in query:
            version = self._created(given)
            state = "COMMITTED" if version.committed else "PENDING"
            latest = {"latestArtifact": None}
            return {"createArtifact": {"artifact": {"id": version.id, "state": state, "artifactSequence": latest}}}
        if "mutation CommitArtifact" in query:
            version = self._version(given["artifactID"])
            version.committed = True
            return {"commitArtifact": {"artifact": {"id": version.id, "digest": version.digest}}}
        if "mutation UseArtifact" in query:
            version = self._version(given["artifactID"])
            version.used_by.append(given["runName"])
            return {"useArtifact": {"artifact": {"id": version.id}}}
        return None

    def take(self, path: str, data: bytes) -> None:
        """Keeps what is uploaded to an address that an answer has named: /artifact/ID/KIND/NAME."""
        _, _, id_, kind, name = path.split("/", 4)
        version = self._version(id_)
        if kind == "manifest":
            version.manifest = json.loads(data)
        else:
            version.files[name] = data

    def named(self, name: str) -> list[Version]:
        return [version for version in self.versions if version.name == name]

    def _created(self, given: dict[str, Any]) -> Version:
        name, digest = given["artifactCollectionName"], given["digest"]
        for version in self.named(name):
            if version.digest == digest:
                return version
        metadata = json.loads(given["metadata"] or "{}")
        kind, run = given["artifactTypeName"], given["runName"]
        self.versions.append(Version(f"artifact{len(self.versions)}", name, kind, digest, metadata, run))
        return self.versions[-1]

    def _version(self, id_: str) -> Version:
        return next(version for version in self.versions if version.id == id_)

    def _manifest(self, id_: str) -> dict[str, Any]:
        return {"artifactManifest": {"id": id_, "file": self._file(id_, "manifest", "wandb_manifest.json")}}

    def _file(self, id_: str, kind: str, name: str) -> dict[str, Any]:
        return {
            "id": f"{id_}/{name}",
            "name": name,
            "displayName": name,
            "storagePath": f"{id_}/{name}",
            "uploadUrl": f"{self.url}/artifact/{id_}/{kind}/{name}",
            "uploadHeaders": [],
            "uploadMultipartUrls": None,
            "artifact": {"id": id_},
        }
