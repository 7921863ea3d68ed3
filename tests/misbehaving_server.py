"""A real HTTP server on this machine that does what servers out there do: fail, lie, stall, hang up."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from types import TracebackType

Writer = asyncio.StreamWriter

#: Answers one request, the number of which to its path is given. True keeps the connection open.
Handler = Callable[[Writer, int], Awaitable[bool]]


class MisbehavingServer:
    """Serves ``routes`` on 127.0.0.1 and ``more_hosts`` in a thread of its own, and counts what it is asked."""

    def __init__(self, *more_hosts: str) -> None:
        self.routes: dict[str, Handler] = {}
        self.requests: Counter[str] = Counter()
        self.headers: dict[str, dict[str, str]] = {}
        self.open: Counter[str] = Counter()
        self.most_open: Counter[str] = Counter()
        self._hosts = ("127.0.0.1", *more_hosts)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> MisbehavingServer:
        self._thread.start()
        self.port = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def add(self, path: str, handler: Handler, host: str = "127.0.0.1") -> str:
        """Serve ``path``; returns its URL."""
        self.routes[path] = handler
        return self.url(path, host)

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    async def _listen(self) -> int:
        first = await asyncio.start_server(self._serve, self._hosts[0], 0)
        port = int(first.sockets[0].getsockname()[1])
        self._servers = [first]
        for host in self._hosts[1:]:
            self._servers.append(await asyncio.start_server(self._serve, host, port))
        return port

    async def _stop(self) -> None:
        for server in self._servers:
            server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        try:
            keep = True
            while keep:
                first = await reader.readexactly(1)
                if first == b"\x16":  # TLS, which is not spoken here
                    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    break
                head = (first + await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                path = head[0].split()[1]
                fields = dict(line.lower().split(": ", 1) for line in head[1:] if line)
                host = fields["host"].rsplit(":", 1)[0]
                self.requests[path] += 1
                self.headers[path] = fields
                self.open[host] += 1
                self.most_open[host] = max(self.most_open[host], self.open[host])
                try:
                    keep = await self.routes.get(path, reply(b"", 404))(writer, self.requests[path])
                    await writer.drain()
                finally:
                    self.open[host] -= 1
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client hung up, which is its good right, or the test is over
        finally:
            writer.close()


def reply(body: bytes, status: int = 200, **headers: object) -> Handler:
    """A proper answer; ``Content_Length`` may be a lie."""
    fields = {"Content_Length": len(body), **headers}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())

    async def answer(writer: Writer, _: int) -> bool:
        writer.write(f"HTTP/1.1 {status} Whatever\r\n{lines}\r\n".encode("latin-1") + body)
        return int(str(fields["Content_Length"])) == len(body)

    return answer


def in_turn(*handlers: Handler) -> Handler:
    """A different answer to each request; the last one stays."""

    async def answer(writer: Writer, number: int) -> bool:
        return await handlers[min(number, len(handlers)) - 1](writer, number)

    return answer


def slowly(seconds: float, then: Handler) -> Handler:
    async def answer(writer: Writer, number: int) -> bool:
        await asyncio.sleep(seconds)
        return await then(writer, number)

    return answer


def redirect(to: str, status: int = 302) -> Handler:
    return reply(b"<html>moved</html>", status, Location=to)


def raw(data: bytes) -> Handler:
    """These bytes, then the end of the connection."""

    async def answer(writer: Writer, _: int) -> bool:
        writer.write(data)
        return False

    return answer


def chunked_cut(body: bytes) -> Handler:
    """A chunk, and no last one."""
    return raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(body), body))


async def endless(writer: Writer, _: int) -> bool:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n\r\n")
    while True:
        writer.write(b"\xff" * 65536)
        await writer.drain()


async def drip(writer: Writer, _: int) -> bool:
    """A byte now and then: each comes in time, all of them never."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while True:
        writer.write(b"\xff")
        await writer.drain()
        await asyncio.sleep(0.05)


async def silence(writer: Writer, _: int) -> bool:
    await asyncio.sleep(3600)
    return False


async def reset(writer: Writer, _: int) -> bool:
    """Hang up with a TCP reset, before any answer."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False


def closed_port() -> int:
    """A port of 127.0.0.1 where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
