"""What this process tells the service manager that started it: systemd's protocol of sd_notify(3), one datagram each.

Whoever started it otherwise is told nothing. What cannot be sent is dropped: a process must not wait for the one who watches it.
"""

import os
import socket
from collections.abc import MutableMapping

import trio

from cluster.clock import thread_s

PINGS_IN_TIME = 3  # within the time after which systemd takes a process that is silent for stuck


class Service:
    """The connection to the service manager; `SERVICE` is that of this process."""

    def __init__(self, address: str | None, watchdog_s: float | None) -> None:
        """*address*: of its socket, `@…` for an abstract one; None: there is none. *watchdog_s*: how long silence may last."""
        self._address = "\0" + address[1:] if address is not None and address.startswith("@") else address
        self._watchdog_s = watchdog_s
        self._is_ready = False
        self._told = ""  # the last status
        self._socket: socket.socket | None = None
        if address is not None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)

    def ready(self) -> None:
        """It does its work from now on; repeats change nothing."""
        if not self._is_ready:
            self._is_ready = True
            self._tell("READY=1")

    def status(self, text: str) -> None:
        """What it does, or waits for: a line of `systemctl status`. Repeats are not told."""
        if text != self._told:
            self._told = text
            self._tell(f"STATUS={' '.join(text.split())}")

    def stopping(self) -> None:
        """It has begun to stop."""
        self._tell("STOPPING=1")

    def reloading(self) -> None:
        """It reads its configuration again; `reloaded` must follow."""
        # systemd tells by the time whether this belongs to its own order (CLOCK_MONOTONIC, microseconds).
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={int(thread_s() * 1_000_000)}")

    def reloaded(self) -> None:
        """What began with `reloading` has ended. One that was not ready before is not by this."""
        if self._is_ready:
            self._tell("READY=1")

    async def keep_pinging(self) -> None:
        """Says again and again that the event loop goes on. For ever, or at once where nobody watches."""
        while self._watchdog_s is not None:
            self._tell("WATCHDOG=1")
            await trio.sleep(self._watchdog_s / PINGS_IN_TIME)

    def _tell(self, message: str) -> None:
        if self._socket is None or self._address is None:
            return
        try:
            self._socket.sendto(message.encode(), self._address)
        except OSError:
            # The manager is being replaced, or its queue is full: the next message tells it again, if any matters.
            return


def service_of(environment: MutableMapping[str, str], pid: int) -> Service:
    """What the environment says about who started process *pid*; takes it out, since it is no business of its children's."""
    address = environment.pop("NOTIFY_SOCKET", None)
    watchdog_us = environment.pop("WATCHDOG_USEC", "")
    is_watched = environment.pop("WATCHDOG_PID", str(pid)) == str(pid) and watchdog_us.isdecimal() and int(watchdog_us) > 0
    return Service(address, int(watchdog_us) / 1_000_000 if is_watched else None)


SERVICE = service_of(os.environ, os.getpid())
