"""Connect the processes of a launch, and report failed connections and lost processes.

    every process connects to a store, which the first process (or torchrun) serves
      ─→ each writes a record (agreement.py) ─→ the first process compares all and writes the result
      ─→ if all agree, they form the process group, and collective calls begin

A store needs no collective calls. Processes with different options therefore get an error and do not hang, and a
process that fails before all have connected can still report its error to the others.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import os
import re
import socket
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import cast

import msgspec
import psutil
import torch
import torch.distributed as dist
from accelerate import PartialState

from shards.errors import Code, UserError, one_line
from toolkit.distributed.agreement import Record, disagreement, other_versions, parse_record, problem_record

log = logging.getLogger(__name__)

#: Exit status of a run that lost another process, or the network between them (sysexits.h's EX_UNAVAILABLE).
LOST = 69

#: How long a process that fails before all have connected stays alive, so that the others can read its error.
FAREWELL = timedelta(seconds=30)

#: Seconds that a process waits for the others, on GPUs and on CPUs, unless POSTERS_TIMEOUT is set; torch's defaults.
#: Longer than any work of a single process: downloading weights, validating an epoch, writing a model.
WAIT_SECONDS = {"gpu": 600, "cpu": 1800}


def wait_seconds() -> timedelta:
    """Return how long a process waits before it treats others as lost. Raises UserError for a bad POSTERS_TIMEOUT."""
    usual = WAIT_SECONDS["gpu" if torch.cuda.is_available() else "cpu"]
    text = os.environ.get("POSTERS_TIMEOUT", str(usual))
    if not text.isdecimal() or int(text) == 0:
        raise UserError("environment", f"POSTERS_TIMEOUT is {text!r}: give whole seconds, at least 1, e.g. {usual}")
    return timedelta(seconds=int(text))


class LostPeer(UserError):
    """Another process, or the network between processes, is lost. The run cannot continue."""

    status = LOST


class Disagreement(UserError):
    """The processes of a launch differ, or one of them cannot start. Every process raises this error."""


def lost_peer(error: RuntimeError) -> LostPeer | None:
    """Return the error to raise if a failed collective call means that a process is lost; else None."""
    if not _is_lost_peer(error):
        return None
    return LostPeer(
        "rank-lost",
        f"lost another process of this run, or the network to it ({_cause(error)}): read the error of that process, "
        f"then start all processes again. A training with --resume continues from its newest checkpoint",
    )


def _is_lost_peer(error: RuntimeError) -> bool:
    """Return whether ``error`` means a lost process. NCCL and the store have an error class; gloo only has its text."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def _cause(error: RuntimeError) -> str:
    """Return the first sentence of torch's message, without positions in torch's source files."""
    return re.sub(r"\[/[^]]*\] *", "", one_line(error)).split(". ")[0][:200]


#: Variables that a launcher sets for each of several processes. All are numbers except the address.
LAUNCHER_VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT", "MASTER_ADDR")


def processes_of(env: Mapping[str, str]) -> int:
    """Return the number of processes of this launch, from the launcher's variables; 1 without a launcher.

    Raises UserError if a variable is missing or not valid.
    """
    values = {"LOCAL_WORLD_SIZE": "1"} | {name: env[name] for name in LAUNCHER_VARIABLES if name in env}
    if values.get("WORLD_SIZE", "1") == "1":
        return 1
    for name in LAUNCHER_VARIABLES:
        text = values.get(name, "")
        good = bool(text) if name == "MASTER_ADDR" else text.isdecimal() and int(text) < 2**16
        if not good or (name == "RANK" and int(text) >= int(values["WORLD_SIZE"])):
            raise UserError(
                "environment",
                f"the environment's WORLD_SIZE {values['WORLD_SIZE']!r} requests several processes, but its {name} is "
                f"{text!r}: start with a launcher, which sets {', '.join(LAUNCHER_VARIABLES)} (see "
                f"docs/scale/nodes-and-slurm.md), or unset WORLD_SIZE for a single process",
            )
    return int(values["WORLD_SIZE"])


def join(wanted: int, cpu: bool, record: Record) -> None:
    """Connect to the other processes and compare records.

    Raises Disagreement if the records differ, LostPeer if a process does not connect in time.
    Uses PartialState, because accelerate's own handler ignores a timeout that equals NCCL's default.
    """
    limit, env = wait_seconds(), os.environ
    if env.get("RANK") == "0" and restarts_share_a_store(env):
        log.warning(
            "torchrun will restart lost processes, but they may then read the addresses of the lost processes: set "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in torchrun's environment (see docs/scale/nodes-and-slurm.md)"
        )
    if wanted > int(env.get("LOCAL_WORLD_SIZE", "1")) and (name := interface_toward(env.get("MASTER_ADDR", ""))):
        # gloo listens on the address of this host's name, which is 127.0.0.1 in the hosts file of many machines.
        env.setdefault("GLOO_SOCKET_IFNAME", name)
    try:
        store = open_store(wanted, limit)
        if verdict := compare(store, int(env["RANK"]), wanted, record):
            raise verdict
        PartialState(cpu, timeout=limit, store=store, rank=int(env["RANK"]), world_size=wanted)
    except RuntimeError as error:
        if not _is_lost_peer(error):
            raise
        raise LostPeer(
            "rank-lost",
            f"the {wanted} processes did not connect at {env.get('MASTER_ADDR')}:{env.get('MASTER_PORT')} "
            f"({_cause(error)}; they wait {limit.total_seconds():.0f} s for each other): check that every node is "
            f"started, that the address is that of the first node, and that no firewall blocks the port (see "
            f"docs/scale/nodes-and-slurm.md)",
        ) from None


def open_store(wanted: int, limit: timedelta) -> dist.Store:
    """Open the store where processes connect, as torch does, but without waiting for all processes.

    limit: how long a call waits for the first process, or for a key.
    """
    env = os.environ
    serves = env["RANK"] == "0" and env.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    host, port = env["MASTER_ADDR"], int(env["MASTER_PORT"])
    return dist.TCPStore(host, port, wanted, serves, limit, wait_for_workers=False, multi_tenant=True)


def compare(store: dist.Store, rank: int, wanted: int, record: Record) -> Disagreement | None:
    """Return the first process's result of comparing all records, on every process; None if they agree.

    The process that reads a key deletes it, because restarted processes may use the same store.
    """
    store = dist.PrefixStore(f"agreement/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    if rank:
        store.set(f"record/{rank}", msgspec.json.encode(record).decode())
        line, _, code = _taken(store, f"verdict/{rank}").decode().partition("\n")
        return Disagreement(cast(Code, code or "ranks-differ"), line) if line else None
    verdict, wanted = _judged(store, wanted, record)
    verdicts = [f"verdict/{other}" for other in range(1, wanted)]
    for key in verdicts:
        store.set(key, f"{verdict}\n{verdict.code}" if verdict else "")
    end = time.monotonic() + FAREWELL.total_seconds()
    while verdict and time.monotonic() < end and any(store.check([key]) for key in verdicts):
        time.sleep(0.01)  # this process may serve the store, so it waits until the others have read
    return verdict


def _judged(store: dist.Store, wanted: int, record: Record) -> tuple[Disagreement | None, int]:
    """Return the result of comparing all records, and the number of processes that read it."""
    if record.problem:
        return Disagreement(record.code, f"the first process cannot start: {record.problem}"), wanted
    records, warning = [record], ""
    for rank in range(1, wanted):
        try:
            other = parse_record(_taken(store, f"record/{rank}"), rank)
        except UserError as error:
            return Disagreement("ranks-differ", str(error)), wanted
        if line := disagreement(records, other):
            return Disagreement(other.code, line), min(wanted, other.processes or wanted)
        warning = warning or other_versions(record, other, rank)
        records.append(other)
    if warning:
        log.warning("%s", warning)
    return None, wanted


def _taken(store: dist.Store, key: str) -> bytes:
    value = store.get(key)
    store.delete_key(key)
    return value


def code_of(error: Exception) -> Code:
    """Return the code of the error that the other processes raise if this process ends with ``error``."""
    if isinstance(error, OSError):
        return "disk-full" if error.errno == errno.ENOSPC else "path-unwritable"
    return error.code if isinstance(error, UserError) else "rank-lost"


def report_failure(error: Exception) -> None:
    """Send the reason why this process ends to the others, if the process group does not exist yet. Prints nothing."""
    if dist.is_initialized() or isinstance(error, (Disagreement, LostPeer)):
        return  # the others have this error already, or get one from a collective call
    problem = one_line(error)
    if not isinstance(error, (UserError, OSError)):
        problem = f"a bug, whose traceback is in its output ({type(error).__name__}: {problem})"
    # Without a launch, or if the others do not connect, only this process ends.
    with contextlib.suppress(UserError, dist.DistError):
        if (wanted := processes_of(os.environ)) > 1:
            store = open_store(wanted, FAREWELL)
            compare(store, int(os.environ["RANK"]), wanted, problem_record(problem, code_of(error)))


def leave() -> None:
    """Destroy a gloo process group, for a process that ends before its command does.

    gloo's threads own tensors of the last collectives. If a thread frees them while the interpreter ends, the process
    aborts, and the launcher reports that instead of our message. An NCCL group is not destroyed here, because that may
    wait for lost processes.
    """
    if dist.is_initialized() and dist.get_backend() == "gloo":
        dist.destroy_process_group()


def restarts_share_a_store(env: Mapping[str, str]) -> bool:
    """Return whether a group restarted by torchrun would use the store of the previous one (pytorch issue 135712)."""
    return env.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and env.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"


def interface_toward(host: str) -> str | None:
    """Return the name of the network interface that reaches ``host``, which may be this machine.

    None if it is unknown, or is the loopback interface.
    """
    try:
        family, kind, *_, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as asking:
            asking.connect(address)  # a datagram socket sends no packet here
            own = asking.getsockname()[0]
    except OSError:
        return None
    if ipaddress.ip_address(own).is_loopback:
        return None
    addresses = psutil.net_if_addrs()
    return next((name for name, known in addresses.items() if own in [a.address for a in known]), None)
