"""A real one-node SLURM cluster for the tests of this folder: started once, without systemd, and stopped again."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

HERE = Path(__file__).parent
log = logging.getLogger(__name__)


CONFIGURATIONS = {
    "limits": {"CLUSTER_ACCOUNTING": "1", "CLUSTER_LIMITS": "1"},
    "bare": {"CLUSTER_ACCOUNTING": "0", "CLUSTER_LIMITS": "0"},
}
"""One with accounting and limits, whose arrays are small and whose GPUs have a type; one that has none of that."""


@contextmanager
def running(state: Path, settings: Mapping[str, str]) -> Iterator[None]:
    """A cluster whose files lie in a folder; the environment points to it as long as the context lasts."""
    before = dict(os.environ)
    stop = [HERE / "stop_cluster.sh", state, "--purge"]
    if state.exists():  # of a test run that was killed
        subprocess.run(stop, check=False, capture_output=True)
    environment = {**before, **settings, "CLUSTER_CPUS": "2", "CLUSTER_GPUS": "2", "CLUSTER_START_TIMEOUT": "600"}
    log.info("starts a cluster in %s", state)
    subprocess.run([HERE / "start_cluster.sh", state], check=True, env=environment)
    os.environ |= {
        "SLURM_CONF": str(state / "etc/slurm.conf"),
        "MUNGE_SOCKET": str(state / "run/munge.socket"),
        "OMP_NUM_THREADS": "1",
    }
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        subprocess.run(stop, check=True)


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[str]:
    """A cluster of one configuration, started once for all its tests; skipped, loudly, where SLURM is not installed.

    It lies in a short and fixed place: a socket's path holds 107 bytes, and a cluster that a killed run left is found.
    """
    require_slurm()
    name: str = request.param
    with running(Path(f"/tmp/matquant-{name}-{os.getuid()}"), CONFIGURATIONS[name]):
        yield name


def require_slurm() -> None:
    if shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin") is None:
        pytest.skip("no SLURM on this machine: run `make test-slurm`, which installs it")


def on(*names: str) -> pytest.MarkDecorator:
    """Runs a test on clusters of some configurations; each is started once, for all its tests."""
    return pytest.mark.parametrize("cluster", names, indirect=True, scope="session")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs all other tests on the cluster with limits."""
    chosen = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    if "cluster" in metafunc.fixturenames and "cluster" not in chosen:
        metafunc.parametrize("cluster", ["limits"], indirect=True, scope="session")


@pytest.fixture(autouse=True)
def _none_is_left(cluster: str) -> Iterator[None]:
    """Checks after each test that none of its jobs is in the queue."""
    yield
    subprocess.run(["scancel", "-u", str(os.getuid())], check=False)
