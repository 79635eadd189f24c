"""Addresses, interfaces and ports of this machine."""

from __future__ import annotations

import socket
import struct


def interface_towards(host: str) -> str | None:
    """Name of the network interface by which this machine reaches `host`; None where that cannot be told."""
    import fcntl

    address = address_towards(host)
    for _, name in socket.if_nameindex() if address else ():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            try:
                # SIOCGIFADDR of netdevice(7): the answer holds a sockaddr_in after 16 bytes of name.
                answer = fcntl.ioctl(asking.fileno(), 0x8915, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def address_towards(host: str) -> str | None:
    """The address of this machine that `host` would see; None where no way leads there."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            # Nothing is sent; the system only looks up its way.
            asking.connect((host, 9))
            return asking.getsockname()[0]
        except OSError:
            return None


def is_own_address(host: str) -> bool:
    """Whether `host` is this machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trying:
        try:
            trying.bind((host, 0))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return listener.getsockname()[1]


def is_taken(port: int) -> bool:
    """Whether something listens on a port of this machine."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError:
            return True
    return False
