"""How a server is set up: checked once, here."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

MEBIBYTE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Settings of a server. Times are in seconds, sizes in bytes.

    Raises:
        ValueError: a value is out of range, or two of them conflict; the message names the field.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes a free one."""
    api_keys: tuple[str, ...] = ()
    """Any of them opens every route; without one, all routes are open."""
    insecure: bool = False
    """Let a host that other machines reach be served without a key."""
    allowed_hosts: tuple[str, ...] = ()
    """What the ``Host`` header may say besides this machine's loopback names and ``host``."""
    cors_origins: tuple[str, ...] = ()
    """Origins of pages that may call; none by default."""
    drain_timeout: float = 30.0
    """How long open requests may go on after the first signal."""
    failure_grace: float = 5.0
    """How long a server whose engine failed goes on to say so."""
    stall_timeout: float = 10.0
    """How long an engine with work may show no progress before ``/livez`` says so."""
    send_timeout: float = 30.0
    """How long a client may leave what it was sent unread."""
    max_body_bytes: int = 4 * MEBIBYTE
    open_metrics: bool = False
    """Let ``/metrics`` be read without a key."""
    enable_debug: bool = False
    """Serve ``/debug`` routes and take ``debug_config``."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port must lie in 0 .. 65535, not {self.port}")
        for name in ("drain_timeout", "failure_grace"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a number of seconds, at least 0, not {getattr(self, name)!r}")
        for name in ("send_timeout", "stall_timeout"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a number of seconds above 0, not {getattr(self, name)!r}")
        if self.max_body_bytes < 1:
            raise ValueError(f"max_body_bytes must be at least 1, not {self.max_body_bytes}")
        if any(not key for key in self.api_keys):
            raise ValueError("an API key is empty")
        if not self.is_local and not self.api_keys and not self.insecure:
            raise ValueError(
                f"host {self.host!r} can be reached from other machines: give an API key, or allow it with --insecure"
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach ``host``."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
