"""Watchdogs on connections."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from fledge.net.connection import Watchdog


def test_watchdogs_share_a_thread() -> None:
    """Each ends the read of its own connection, and only if that makes no progress."""
    before = threading.active_count()
    slow, slow_peer = socket.socketpair()
    busy, busy_peer = socket.socketpair()
    with slow, slow_peer, busy, busy_peer:
        with Watchdog(busy.fileno(), 60) as other:
            for _ in range(20):
                with Watchdog(busy.fileno(), 60):
                    assert threading.active_count() <= before + 1
            with pytest.raises(TimeoutError), Watchdog(slow.fileno(), 0.05):
                slow.recv(1)
            other.progress()
        busy_peer.send(b"x")
        assert busy.recv(1) == b"x"


@pytest.mark.slow
def test_progress_puts_the_end_off() -> None:
    one, peer = socket.socketpair()
    with one, peer, Watchdog(one.fileno(), 0.3) as watchdog:
        for _ in range(10):
            time.sleep(0.05)
            watchdog.progress()
        peer.send(b"x")
        assert one.recv(1) == b"x"
