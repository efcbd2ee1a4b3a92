"""Requests from the benches to a running network: lines of JSON over a socket of its folder."""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.net.shape import ShapeError

_READ = 65_536
Answer = Callable[[dict[str, Any]], dict[str, Any]]


class Server:
    """Answers requests, which say in `do` by which of `answers`, at the descriptors it registers with `poll`."""

    def __init__(self, path: Path, answers: Mapping[str, Answer], poll: select.epoll) -> None:
        self._answers = answers
        self._poll = poll
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.setblocking(False)
        self._listener.bind(str(path))
        self._listener.listen(16)
        self._clients: dict[int, tuple[socket.socket, bytearray]] = {}
        poll.register(self._listener.fileno(), select.EPOLLIN)

    def attend(self, fd: int) -> None:
        """Something happened at one of its descriptors."""
        if fd == self._listener.fileno():
            client, _ = self._listener.accept()
            client.setblocking(False)
            self._clients[client.fileno()] = (client, bytearray())
            self._poll.register(client.fileno(), select.EPOLLIN)
        else:
            self._serve(fd)

    def _serve(self, fd: int) -> None:
        client, buffer = self._clients[fd]
        try:
            data = client.recv(_READ)
        except OSError:
            data = b""
        if not data:
            self._poll.unregister(fd)
            del self._clients[fd]
            client.close()
            return
        buffer += data
        while (end := buffer.find(b"\n")) >= 0:
            line = bytes(buffer[:end])
            del buffer[: end + 1]
            try:
                request = json.loads(line)
                answer = self._answers[str(request["do"])](request)
            except (ShapeError, KeyError, ValueError, TypeError, RuntimeError) as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            client.setblocking(True)
            try:
                client.sendall(json.dumps(answer).encode() + b"\n")
            except OSError:
                pass
            client.setblocking(False)
