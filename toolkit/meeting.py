"""How the processes of a launch meet, and what is said where they do not, or where one is lost later."""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import socket
from collections.abc import Mapping
from datetime import timedelta

import psutil
import torch
import torch.distributed as dist
from accelerate import PartialState

from shards.errors import UserError, one_line

log = logging.getLogger(__name__)

#: Exit status of a run that lost another process, or the network between them (sysexits.h's EX_UNAVAILABLE).
LOST = 69

#: Seconds for which a process waits for the others on GPUs and on CPUs, unless POSTERS_TIMEOUT says otherwise; torch's
#: own numbers. Longer than what one does alone meanwhile: fetching weights, judging an epoch, writing a model.
PATIENCE = {"gpu": 600, "cpu": 1800}


def patience() -> timedelta:
    """How long a process waits for the others before it takes them for lost. Raises UserError."""
    usual = PATIENCE["gpu" if torch.cuda.is_available() else "cpu"]
    text = os.environ.get("POSTERS_TIMEOUT", str(usual))
    if not text.isdecimal() or int(text) == 0:
        raise UserError(f"POSTERS_TIMEOUT is {text!r}: give whole seconds, at least 1, e.g. {usual}")
    return timedelta(seconds=int(text))


class LostPeer(UserError):
    """Another process, or the network between processes, is gone. The rest of the run cannot go on without it."""

    status = LOST


def lost_peer(error: RuntimeError) -> LostPeer | None:
    """In one line what a collective's failure is about, if it is that another process is gone."""
    if not _is_lost_peer(error):
        return None
    return LostPeer(
        f"lost another process of this run, or the network to it ({_cause(error)}): look at what that process said; "
        f"then start all of them again. A training with --resume goes on from its newest checkpoint"
    )


def _is_lost_peer(error: RuntimeError) -> bool:
    """torch has a class for NCCL's and the store's failures; gloo's are told by their text alone."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def _cause(error: RuntimeError) -> str:
    """The first sentence of torch's message, without places in its sources."""
    return re.sub(r"\[/[^]]*\] *", "", one_line(error)).split(". ")[0][:200]


#: What a launcher tells each of several processes; all numbers but the address.
TOLD = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT", "MASTER_ADDR")


def processes_of(env: Mapping[str, str]) -> int:
    """How many processes the launcher of this one started, by the variables that it set; 1 without a launcher.

    Raises UserError for variables with which no processes could meet.
    """
    told = {"LOCAL_WORLD_SIZE": "1"} | {name: env[name] for name in TOLD if name in env}
    if told.get("WORLD_SIZE", "1") == "1":
        return 1
    for name in TOLD:
        text = told.get(name, "")
        good = bool(text) if name == "MASTER_ADDR" else text.isdecimal()
        if not good or (name == "RANK" and int(text) >= int(told["WORLD_SIZE"])):
            raise UserError(
                f"the environment's WORLD_SIZE {told['WORLD_SIZE']!r} asks for a launch, but its {name} is "
                f"{text!r}: start by a launcher, which sets {', '.join(TOLD)} (see launch/README.md), or unset "
                f"WORLD_SIZE for one process alone"
            )
    return int(told["WORLD_SIZE"])


def join(wanted: int, cpu: bool) -> None:
    """Meet the other processes. Raises LostPeer if they do not come in time.

    By PartialState: accelerate's own handler passes a timeout on only where it is not NCCL's usual one.
    """
    limit, env = patience(), os.environ
    if env.get("RANK") == "0" and restarts_share_a_store(env):
        log.warning(
            "torchrun will start lost processes again, but those may then read addresses of the lost ones: set "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in torchrun's environment (see launch/README.md)"
        )
    if wanted > int(env.get("LOCAL_WORLD_SIZE", "1")) and (
        name := interface_toward(env.get("MASTER_ADDR", ""))
    ):
        # gloo listens where this host's name leads, which many hosts' own tables say is 127.0.0.1.
        env.setdefault("GLOO_SOCKET_IFNAME", name)
    try:
        PartialState(cpu, timeout=limit)
    except RuntimeError as error:
        if not _is_lost_peer(error):
            raise
        raise LostPeer(
            f"the {wanted} processes did not meet at {env.get('MASTER_ADDR')}:{env.get('MASTER_PORT')} "
            f"({_cause(error)}; they wait {limit.total_seconds():.0f} s for each other): is every node started, is the "
            f"address that of the first node, does a firewall stand between them? See launch/README.md"
        ) from None


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
    return (
        env.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and env.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
    )


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
