"""Connect the processes of a launch, and report failed connections and lost processes.

    every process connects to a store of keys and values; the first process or torchrun runs its server
      ─→ each process writes a record (agreement.py) ─→ the first process compares all records and writes the result
      ─→ if all records agree, the processes form the process group for collective calls

The store needs no collective calls. So processes with different options end with an error and do not hang. A process
that fails before all processes have connected can still report its error.
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

#: Exit status if another process, or the network to it, is lost (EX_UNAVAILABLE in sysexits.h).
LOST = 69
#: Longest time that a failed process waits until the other processes have connected and have read its error.
LEAVE_TIMEOUT = timedelta(seconds=30)
#: Default time limit in seconds for waiting for other processes, on GPUs and on CPUs: torch's defaults. POSTERS_TIMEOUT
#: replaces it. It must be longer than any work of a single process, such as downloading weights or validating an epoch.
WAIT_SECONDS = {"gpu": 600, "cpu": 1800}


def wait_seconds() -> timedelta:
    """Return how long to wait for other processes. Raises UserError if POSTERS_TIMEOUT is not valid."""
    usual = WAIT_SECONDS["gpu" if torch.cuda.is_available() else "cpu"]
    text = os.environ.get("POSTERS_TIMEOUT", str(usual))
    if not text.isdecimal() or int(text) == 0:
        raise UserError(
            "environment", f"POSTERS_TIMEOUT is {text!r}: set it to whole seconds, at least 1, e.g. {usual}"
        )
    return timedelta(seconds=int(text))


class LostPeer(UserError):
    """Another process, or the network between processes, is lost. The run cannot continue."""

    status = LOST


class Disagreement(UserError):
    """The processes of a launch differ, or one of them cannot start. Every process raises this error."""


def lost_peer(error: RuntimeError) -> LostPeer | None:
    """Return the error to raise if a collective call failed because a process is lost. Return None for other errors."""
    if not _is_lost_peer(error):
        return None
    return LostPeer(
        "rank-lost",
        f"lost another process of this run, or the network to it ({_cause(error)}): read the error of that process, "
        f"then start all processes again. A training with --resume continues from its newest checkpoint",
    )


def _is_lost_peer(error: RuntimeError) -> bool:
    """Return whether ``error`` means a lost process: a DistError of NCCL or the store, or an error of gloo."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def _cause(error: RuntimeError) -> str:
    """Return the first sentence of torch's message, without source file positions."""
    return re.sub(r"\[/[^]]*\] *", "", one_line(error)).split(". ")[0][:200]


#: Environment variables that a launcher sets for each process. All are numbers except MASTER_ADDR.
LAUNCHER_VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT", "MASTER_ADDR")


def processes_of(env: Mapping[str, str]) -> int:
    """Return the number of processes of this launch, from the launcher's variables. Without a launcher it is 1.

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
                f"WORLD_SIZE {values['WORLD_SIZE']!r} in the environment requests several processes, but {name} is "
                f"{text!r}: start with a launcher, which sets {', '.join(LAUNCHER_VARIABLES)} (see "
                f"docs/scale/nodes-and-slurm.md), or unset WORLD_SIZE for a single process",
            )
    return int(values["WORLD_SIZE"])


def join(wanted: int, cpu: bool, record: Record) -> None:
    """Connect all ``wanted`` processes of the launch, and compare their records (agreement.py).

    Raises Disagreement if the records differ, and LostPeer if a process does not connect in time.
    """
    limit, env = wait_seconds(), os.environ
    if env.get("RANK") == "0" and restarts_share_a_store(env):
        log.warning(
            "torchrun will restart lost processes, but new processes may read addresses of lost processes: set "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in torchrun's environment (see docs/scale/nodes-and-slurm.md)"
        )
    if wanted > int(env.get("LOCAL_WORLD_SIZE", "1")) and (name := interface_toward(env.get("MASTER_ADDR", ""))):
        # gloo listens on the address of this host's name. That is often 127.0.0.1, which other machines cannot reach.
        env.setdefault("GLOO_SOCKET_IFNAME", name)
    try:
        store = open_store(wanted, limit)
        if verdict := compare(store, int(env["RANK"]), wanted, record):
            raise verdict
        # accelerate's InitProcessGroupKwargs is not used, because it ignores a timeout that equals NCCL's default.
        PartialState(cpu, timeout=limit, store=store, rank=int(env["RANK"]), world_size=wanted)
    except RuntimeError as error:
        if not _is_lost_peer(error):
            raise
        raise LostPeer(
            "rank-lost",
            f"the {wanted} processes did not connect at {env.get('MASTER_ADDR')}:{env.get('MASTER_PORT')} "
            f"({_cause(error)}; time limit {limit.total_seconds():.0f} s): check that every node is started, that the "
            f"address belongs to the first node, and that no firewall blocks the port (see "
            f"docs/scale/nodes-and-slurm.md)",
        ) from None


def open_store(wanted: int, limit: timedelta) -> dist.Store:
    """Connect to the store of this launch, without waiting for all processes.

    ``limit`` is the longest time that a call waits for the store's server or for a key.
    """
    env = os.environ
    serves = env["RANK"] == "0" and env.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    host, port = env["MASTER_ADDR"], int(env["MASTER_PORT"])
    return dist.TCPStore(host, port, wanted, serves, limit, wait_for_workers=False, multi_tenant=True)


def compare(store: dist.Store, rank: int, wanted: int, record: Record) -> Disagreement | None:
    """Compare the records of all processes. Return the error to raise on every process, or None if the records agree.

    Keys are deleted from the store when they are read, because restarted processes may use the same store.
    """
    store = dist.PrefixStore(f"agreement/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    if rank:
        store.set(f"record/{rank}", msgspec.json.encode(record).decode())
        line, _, code = _pop(store, f"verdict/{rank}").decode().partition("\n")
        return Disagreement(cast(Code, code or "ranks-differ"), line) if line else None
    verdict, wanted = _compared(store, wanted, record)
    verdicts = [f"verdict/{other}" for other in range(1, wanted)]
    for key in verdicts:
        store.set(key, f"{verdict}\n{verdict.code}" if verdict else "")
    end = time.monotonic() + LEAVE_TIMEOUT.total_seconds()
    while verdict and time.monotonic() < end and any(store.check([key]) for key in verdicts):
        time.sleep(0.01)  # this process may run the store's server, which the others need for reading
    return verdict


def _compared(store: dist.Store, wanted: int, record: Record) -> tuple[Disagreement | None, int]:
    """Compare all records on the first process. Return the error, or None, and how many processes must get it."""
    if record.problem:
        return Disagreement(record.code, f"the first process cannot start: {record.problem}"), wanted
    records, warning = [record], ""
    for rank in range(1, wanted):
        try:
            other = parse_record(_pop(store, f"record/{rank}"), rank)
        except UserError as error:
            return Disagreement("ranks-differ", str(error)), wanted
        if line := disagreement(records, other):
            return Disagreement(other.code, line), min(wanted, other.processes or wanted)
        warning = warning or other_versions(record, other, rank)
        records.append(other)
    if warning:
        log.warning("%s", warning)
    return None, wanted


def _pop(store: dist.Store, key: str) -> bytes:
    value = store.get(key)
    store.delete_key(key)
    return value


def code_of(error: Exception) -> Code:
    """Return the error code that the other processes report if this process ends with ``error``."""
    if isinstance(error, OSError):
        return "disk-full" if error.errno == errno.ENOSPC else "path-unwritable"
    return error.code if isinstance(error, UserError) else "rank-lost"


def report_failure(error: Exception) -> None:
    """Send the error that ends this process to the other processes, if there is no process group yet."""
    if dist.is_initialized() or isinstance(error, (Disagreement, LostPeer)):
        return  # the others already have this error, or their next collective call fails
    problem = one_line(error)
    if not isinstance(error, (UserError, OSError)):
        problem = f"a bug ({type(error).__name__}: {problem}); the traceback is in the output of that process"
    # If there is no launch, or if the others do not connect, only this process ends.
    with contextlib.suppress(UserError, dist.DistError):
        if (wanted := processes_of(os.environ)) > 1:
            store = open_store(wanted, LEAVE_TIMEOUT)
            compare(store, int(os.environ["RANK"]), wanted, problem_record(problem, code_of(error)))


def leave() -> None:
    """Destroy the process group of a process that ends with an error, if the group uses gloo.

    gloo's threads own tensors of the last collective calls. If a thread frees such a tensor while the interpreter ends,
    the process aborts. The launcher then reports the abort and not our message. An NCCL group is not destroyed, because
    destroying it can block until the time limit if another process is gone.
    """
    if dist.is_initialized() and dist.get_backend() == "gloo":
        dist.destroy_process_group()


def restarts_share_a_store(env: Mapping[str, str]) -> bool:
    """Return whether torchrun keeps its store when it restarts the processes (pytorch issue 135712)."""
    return env.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and env.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"


def interface_toward(host: str) -> str | None:
    """Return the name of the network interface that reaches ``host``.

    Return None if the interface is unknown or is the loopback interface.
    """
    try:
        family, kind, *_, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # connecting a datagram socket sends no packet
            own = probe.getsockname()[0]
    except OSError:
        return None
    if ipaddress.ip_address(own).is_loopback:
        return None
    addresses = psutil.net_if_addrs()
    return next((name for name, known in addresses.items() if own in [a.address for a in known]), None)
