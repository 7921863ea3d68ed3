"""How the processes of a launch meet, and what is said where they do not, or where one is lost later.

    every process connects to a store, which the first one (or torchrun) serves
      ─→ its record (agreement.py) goes there ─→ the first process compares ─→ its verdict comes back
      ─→ if all agree, they form the process group, and collective calls begin

A store is asked by one process at a time. So nothing hangs where processes would make different collective calls, and
a process that fails before all have met can still tell the others.
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

#: How long a process that ends before all have met stays, so that the others hear of it.
FAREWELL = timedelta(seconds=30)

#: Seconds for which a process waits for the others on GPUs and on CPUs, unless POSTERS_TIMEOUT says otherwise; torch's
#: own numbers. Longer than what one does alone meanwhile: fetching weights, judging an epoch, writing a model.
WAIT_SECONDS = {"gpu": 600, "cpu": 1800}


def wait_seconds() -> timedelta:
    """How long a process waits for the others before it takes them for lost. Raises UserError."""
    usual = WAIT_SECONDS["gpu" if torch.cuda.is_available() else "cpu"]
    text = os.environ.get("POSTERS_TIMEOUT", str(usual))
    if not text.isdecimal() or int(text) == 0:
        raise UserError("environment", f"POSTERS_TIMEOUT is {text!r}: give whole seconds, at least 1, e.g. {usual}")
    return timedelta(seconds=int(text))


class LostPeer(UserError):
    """Another process, or the network between processes, is gone. The rest of the run cannot go on without it."""

    status = LOST


class Disagreement(UserError):
    """The processes of a launch do not do the same, or one of them cannot begin. Every one of them raises it."""


def lost_peer(error: RuntimeError) -> LostPeer | None:
    """In one line what a collective's failure is about, if it is that another process is gone."""
    if not _is_lost_peer(error):
        return None
    return LostPeer(
        "rank-lost",
        f"lost another process of this run, or the network to it ({_cause(error)}): look at what that process said; "
        f"then start all of them again. A training with --resume goes on from its newest checkpoint",
    )


def _is_lost_peer(error: RuntimeError) -> bool:
    """torch has a class for NCCL's and the store's failures; gloo's are told by their text alone."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def _cause(error: RuntimeError) -> str:
    """The first sentence of torch's message, without places in its sources."""
    return re.sub(r"\[/[^]]*\] *", "", one_line(error)).split(". ")[0][:200]


#: What a launcher tells each of several processes; all numbers but the address.
LAUNCHER_VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT", "MASTER_ADDR")


def processes_of(env: Mapping[str, str]) -> int:
    """How many processes the launcher of this one started, by the variables that it set; 1 without a launcher.

    Raises UserError for variables with which no processes could meet.
    """
    told = {"LOCAL_WORLD_SIZE": "1"} | {name: env[name] for name in LAUNCHER_VARIABLES if name in env}
    if told.get("WORLD_SIZE", "1") == "1":
        return 1
    for name in LAUNCHER_VARIABLES:
        text = told.get(name, "")
        good = bool(text) if name == "MASTER_ADDR" else text.isdecimal() and int(text) < 2**16
        if not good or (name == "RANK" and int(text) >= int(told["WORLD_SIZE"])):
            raise UserError(
                "environment",
                f"the environment's WORLD_SIZE {told['WORLD_SIZE']!r} asks for a launch, but its {name} is "
                f"{text!r}: start by a launcher, which sets {', '.join(LAUNCHER_VARIABLES)} (see "
                f"docs/scale/nodes-and-slurm.md), or unset WORLD_SIZE for one process alone",
            )
    return int(told["WORLD_SIZE"])


def join(wanted: int, cpu: bool, record: Record) -> None:
    """Meet the other processes, if all are about to do the same.

    Raises Disagreement if they are not, LostPeer if they do not come in time.
    By PartialState: accelerate's own handler passes a timeout on only where it is not NCCL's usual one.
    """
    limit, env = wait_seconds(), os.environ
    if env.get("RANK") == "0" and restarts_share_a_store(env):
        log.warning(
            "torchrun will start lost processes again, but those may then read addresses of the lost ones: set "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in torchrun's environment (see docs/scale/nodes-and-slurm.md)"
        )
    if wanted > int(env.get("LOCAL_WORLD_SIZE", "1")) and (name := interface_toward(env.get("MASTER_ADDR", ""))):
        # gloo listens where this host's name leads, which many hosts' own tables say is 127.0.0.1.
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
            f"the {wanted} processes did not meet at {env.get('MASTER_ADDR')}:{env.get('MASTER_PORT')} "
            f"({_cause(error)}; they wait {limit.total_seconds():.0f} s for each other): is every node started, is the "
            f"address that of the first node, does a firewall stand between them? See docs/scale/nodes-and-slurm.md",
        ) from None


def open_store(wanted: int, limit: timedelta) -> dist.Store:
    """The store where processes meet, as torch opens it, but the first process does not wait for the others.

    limit: how long a call waits for the first process, or for a key.
    """
    env = os.environ
    serves = env["RANK"] == "0" and env.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    host, port = env["MASTER_ADDR"], int(env["MASTER_PORT"])
    return dist.TCPStore(host, port, wanted, serves, limit, wait_for_workers=False, multi_tenant=True)


def compare(store: dist.Store, rank: int, wanted: int, record: Record) -> Disagreement | None:
    """The first process's verdict on the records of all, the same on each of them; None if they agree.

    Every key is deleted by the process that reads it: those of processes that are started again may meet in this store.
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
        time.sleep(0.01)  # this process may serve the store: it does not end before the others have read
    return verdict


def _judged(store: dist.Store, wanted: int, record: Record) -> tuple[Disagreement | None, int]:
    """The verdict, and how many processes there are to hear it."""
    if record.problem:
        return Disagreement(record.code, f"the first process cannot begin: {record.problem}"), wanted
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
    """The code of the error that the other processes end with where one ends with this."""
    if isinstance(error, OSError):
        return "disk-full" if error.errno == errno.ENOSPC else "path-unwritable"
    return error.code if isinstance(error, UserError) else "rank-lost"


def report_failure(error: Exception) -> None:
    """Tell the other processes of a launch why this one ends, if it has not met them yet. Says nothing itself."""
    if dist.is_initialized() or isinstance(error, (Disagreement, LostPeer)):
        return  # they know, or will hear by a collective call
    problem = one_line(error)
    if not isinstance(error, (UserError, OSError)):
        problem = f"a bug, whose traceback is in what it said ({type(error).__name__}: {problem})"
    # Without a launch, or if the others do not come, it ends alone.
    with contextlib.suppress(UserError, dist.DistError):
        if (wanted := processes_of(os.environ)) > 1:
            store = open_store(wanted, FAREWELL)
            compare(store, int(os.environ["RANK"]), wanted, problem_record(problem, code_of(error)))


def leave() -> None:
    """Take down what this process met the others by, if it did: for a process that ends before its command does.

    gloo's threads hold tensors of the last collectives, which Python owns: one that lets go of them while the
    interpreter ends aborts the process, and the launcher reports that instead of what we said. NCCL's group is left
    to the end of the process, because taking it down may wait for others, who may be gone.
    """
    if dist.is_initialized() and dist.get_backend() == "gloo":
        dist.destroy_process_group()


def restarts_share_a_store(env: Mapping[str, str]) -> bool:
    """Whether a group that torchrun starts again would meet in the store of the one before (pytorch issue 135712)."""
    return env.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and env.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"


def interface_toward(host: str) -> str | None:
    """Name of the network interface by which this machine reaches ``host``, itself included.

    None where that cannot be told, or is the loopback.
    """
    try:
        family, kind, *_, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as asking:
            asking.connect(address)  # a datagram socket sends nothing for that
            own = asking.getsockname()[0]
    except OSError:
        return None
    if ipaddress.ip_address(own).is_loopback:
        return None
    addresses = psutil.net_if_addrs()
    return next((name for name, known in addresses.items() if own in [a.address for a in known]), None)
