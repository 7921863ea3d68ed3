"""A cluster for several test modules; one that wants it says ``pytest_plugins = ("cluster_fixtures",)``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_tools import Cluster, cluster_of
from dask_tasks import BROKEN


@pytest.fixture(scope="session")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """While this file is there, the detector of dask_tasks.py has a bug on the cluster's workers."""
    return tmp_path_factory.mktemp("broken") / "broken"


@pytest.fixture(scope="session")
def session_cluster(s3_address: str, broken: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two workers, which know the S3 server."""
    with cluster_of(tmp_path_factory.mktemp("cluster"), 2, **{BROKEN: str(broken)}) as running:
        yield running


@pytest.fixture
def cluster(session_cluster: Cluster) -> Cluster:
    """The same, with both workers alive."""
    session_cluster.mend()
    return session_cluster
