"""What hostile clients do to a port, bounded, on loopback:  python tests/attacks.py NAME PORT [COUNT]"""

from __future__ import annotations

import random
import resource
import socket
import sys
from collections.abc import Callable
from contextlib import suppress

HELLO = b'{"id":1,"method":"hello","params":{"api_key":"%b"}}\n'
TLS_HELLO = bytes.fromhex("160301020001000001fc0303") + b"\0" * 200


class Crowd:
    """Connections to a port, the last few hundred of which are kept open."""

    def __init__(self, port: int, kept: int = 1000) -> None:
        self.port, self.kept = port, kept
        self.open: list[socket.socket] = []

    def send(self, data: bytes) -> socket.socket:
        """A new connection that says this."""
        peer = socket.create_connection(("127.0.0.1", self.port), 10)
        self.open.append(peer)
        with suppress(OSError):
            peer.sendall(data)
        if len(self.open) > self.kept:
            self.open.pop(0).close()
        return peer

    def close(self) -> None:
        """Nobody is left."""
        for peer in self.open:
            peer.close()


def slowloris(crowd: Crowd, count: int) -> None:
    """Requests that are never finished, one byte at a time."""
    peers = [crowd.send(b"P") for _ in range(count)]
    for byte in b"OST /rpc HTTP/1.1\r\nHost: tau\r\nX-A: ":
        for peer in peers:
            with suppress(OSError):
                peer.send(bytes([byte]))


def silent(crowd: Crowd, count: int) -> None:
    """Connections that say nothing."""
    for _ in range(count):
        crowd.send(b"")


def half_open(crowd: Crowd, count: int) -> None:
    """Peers that have said all, or are gone without a word, in the middle of a request."""
    for number in range(count):
        peer = crowd.send(b'{"id":1,"meth' if number % 2 else b"POST /rpc HTTP/1.1\r\nContent-Le")
        with suppress(OSError):
            peer.shutdown(socket.SHUT_WR)


def garbage(crowd: Crowd, count: int) -> None:
    """Bytes that mean nothing, of every first byte."""
    dice = random.Random(2026)
    for number in range(count):
        crowd.send(bytes([number % 256]) + dice.randbytes(dice.randrange(2000)))


def wrong_tongue(crowd: Crowd, count: int) -> None:
    """TLS to who speaks plainly, and plain text to who speaks TLS."""
    for number in range(count):
        crowd.send(TLS_HELLO if number % 2 else HELLO % b"x")


def oversized(crowd: Crowd, count: int) -> None:
    """Heads and lines of a megabyte."""
    for number in range(count):
        crowd.send((b"GET / HTTP/1.1\r\nX: " if number % 2 else b'{"id":"') + b"x" * (1 << 20))


def wrong_keys(crowd: Crowd, count: int) -> None:
    """Keys that are none, in lines and over HTTP."""
    for number in range(count):
        key = b"tau_sk_%040d" % number
        crowd.send(
            HELLO % key if number % 2 else b"GET /metrics HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer %b\r\n\r\n" % key
        )


ATTACKS: dict[str, tuple[Callable[[Crowd, int], None], int]] = {
    "slowloris": (slowloris, 500),
    "silent": (silent, 1000),
    "half_open": (half_open, 1000),
    "garbage": (garbage, 2000),
    "wrong_tongue": (wrong_tongue, 1000),
    "oversized": (oversized, 100),
    "wrong_keys": (wrong_keys, 10_000),
}


def main(name: str, port: int, count: int | None = None) -> None:
    """One attack, from its beginning to its end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    attack, usual = ATTACKS[name]
    crowd = Crowd(port)
    try:
        attack(crowd, count or usual)
    finally:
        crowd.close()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
