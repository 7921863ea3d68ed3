"""Two nodes for real: network namespaces with their own addresses, joined by a cable that can be pulled."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from launch_tools import PROBE, ROOT, UPDATES, clean_env, newest_step, options_of, rows, wait_until, weights

from toolkit.distributed.launch import interface_toward

pytest_plugins = ("launch_fixtures",)

CONFIG = ROOT / "launch" / "accelerate" / "nodes.yaml"
#: The nodes have this cable only. It is not named eth0, and host names lead to 127.0.0.1, as on many a machine.
CABLE = "ib7"
ADDRESSES = ("10.83.0.1", "10.83.0.2")
#: Seconds without an answer after which a node takes the other for lost; they may also start that unequally.
PATIENCE = 15


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@dataclass(frozen=True)
class Nodes:
    """Two network namespaces."""

    names: tuple[str, str]

    def launch(self, rank: int, *words: object, **env: str) -> subprocess.Popen[str]:
        """accelerate's launcher on one of them, with one process, on the CPU."""
        command = [
            "ip", "netns", "exec", self.names[rank], sys.executable, "-m", "accelerate.commands.launch",
            "--config_file", CONFIG, "--num_machines", 2, "--num_processes", 2, "--mixed_precision", "no",
            "--machine_rank", rank, "--main_process_ip", ADDRESSES[0], *words,
        ]  # fmt: skip
        return subprocess.Popen(
            list(map(str, command)),
            cwd=ROOT,
            env=clean_env() | {"ACCELERATE_USE_CPU": "true"} | env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def both(self, *words: object, **env: str) -> list[subprocess.Popen[str]]:
        return [self.launch(rank, *words, **env) for rank in (0, 1)]

    def pull_the_cable(self) -> None:
        ip("-n", self.names[1], "link", "set", CABLE, "down")

    def plug_it_in(self) -> None:
        ip("-n", self.names[1], "link", "set", CABLE, "up")


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    if not (sys.platform == "linux" and os.geteuid() == 0 and shutil.which("ip")):
        pytest.skip("network namespaces need Linux, root and the command ip")
    first, second = names = (f"posters-{os.getpid()}-a", f"posters-{os.getpid()}-b")
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", CABLE, "netns", first, "type", "veth", "peer", "name", CABLE, "netns", second)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this machine allows no network namespaces: {error.stderr.strip()}")
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", CABLE)
            for link in ("lo", CABLE):
                ip("-n", name, "link", "set", link, "up")
        yield Nodes(names)
    finally:
        for name in names:  # the cable goes with them
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def errors(said: str) -> list[str]:
    return [line for line in said.replace("\r", "\n").splitlines() if line.startswith("error:")]


def ends(jobs: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """(status, stderr) of each."""
    said = [job.communicate(timeout=180)[1] for job in jobs]
    return [(job.returncode, text) for job, text in zip(jobs, said, strict=True)]


@pytest.mark.long
def test_two_nodes_give_the_weights_of_two_processes_on_one(nodes: Nodes, launch_set: Path, pair: Path, tmp_path: Path):
    (status, said), (other, quiet) = ends(nodes.both("launch/train.py", *options_of(launch_set, tmp_path / "run")))
    assert (status, other) == (0, 0), said + quiet
    assert "2 process(es) on cpu" in said
    assert weights(tmp_path / "run") == weights(pair)


@pytest.mark.long
def test_a_pulled_cable_ends_both_sides_with_a_line_and_a_resume_finishes(
    nodes: Nodes, launch_set: Path, pair: Path, tmp_path: Path
):
    options = [*options_of(launch_set, tmp_path / "run"), "--resume"]
    jobs = nodes.both(PROBE, tmp_path, "pause update 4 0", *options, POSTERS_TIMEOUT=str(PATIENCE))
    try:
        wait_until((tmp_path / "happened").exists, "the fourth update")
        nodes.pull_the_cable()
        (tmp_path / "go").touch()
        for status, said in ends(jobs):
            (line,) = errors(said)
            assert status == 1 and "exitcode  : 69" in said  # the launcher's own status, and its report of ours
            assert "lost another process" in line and "Timed out" in line and "--resume" in line, line
            assert "Traceback" not in said.partition("error:")[0]
    finally:
        nodes.plug_it_in()
    assert newest_step(tmp_path / "run") in (3, 4)
    for status, said in ends(nodes.both("launch/train.py", *options)):
        assert status == 0, said
    assert [int(row["update"]) for row in rows(tmp_path / "run" / "log.csv")] == list(range(1, UPDATES + 1))
    assert weights(tmp_path / "run") == weights(pair)


def test_the_interface_that_leads_to_the_first_node(nodes: Nodes):
    code = "import sys; from toolkit.distributed.launch import interface_toward as i; "
    code += "print([i(a) for a in sys.argv[1:]])"
    hosts = [*ADDRESSES, "localhost", "192.0.2.1", "no.such"]
    seen = subprocess.run(
        ["ip", "netns", "exec", nodes.names[1], sys.executable, "-c", code, *hosts],
        cwd=ROOT, env=clean_env(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert seen.stdout.strip() == repr([CABLE, CABLE, None, None, None])


def test_nothing_leads_over_the_loopback():
    assert interface_toward("127.0.0.1") is None and interface_toward("") is None
