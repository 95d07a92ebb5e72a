"""How a server is set up: checked once, here."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field

MEBIBYTE = 1 << 20

_TIMEOUTS = (
    "send_timeout",
    "stall_timeout",
    "header_timeout",
    "body_timeout",
    "upload_timeout",
    "keep_alive_timeout",
)
_SIZES = ("max_connections", "max_header_bytes", "max_body_bytes", "max_bodies_bytes")
_KEY = re.compile(r"[!-~]+")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@*]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Settings of a server. Times are in seconds, sizes in bytes.

    Raises:
        ValueError: a value is out of range, or two of them conflict; the message names the field.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes a free one."""
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    """Any of them opens every route; without one, all routes are open."""
    insecure: bool = False
    """Let a host that other machines reach be served without a key."""
    allowed_hosts: tuple[str, ...] = ()
    """What the ``Host`` header may say besides ``localhost``, ``host`` and addresses of this machine. A server that
    other machines reach takes any, unless some are given here."""
    cors_origins: tuple[str, ...] = ()
    """Origins of pages that may call, such as ``https://chat.example``; none by default."""
    drain_timeout: float = 30.0
    """How long open requests may go on after the first signal."""
    failure_grace: float = 5.0
    """How long a server whose engine failed goes on to say so."""
    stall_timeout: float = 10.0
    """How long an engine with work may show no progress before ``/livez`` says so."""
    send_timeout: float = 30.0
    """How long a client may leave what it was sent unread."""
    header_timeout: float = 10.0
    """How long a client may take to send the head of a request."""
    body_timeout: float = 10.0
    """How long a client may be silent while it sends a body."""
    upload_timeout: float = 120.0
    """How long a client may take to send a body."""
    keep_alive_timeout: float = 30.0
    """How long a connection stays open between two requests."""
    max_connections: int = 1000
    """Connections at a time; fewer where the system does not give the process enough descriptors."""
    max_header_bytes: int = 16384
    max_body_bytes: int = 4 * MEBIBYTE
    max_bodies_bytes: int = 64 * MEBIBYTE
    """Of all bodies over 64 KiB together that are being read or wait for the beginning of their answer."""
    open_metrics: bool = False
    """Let ``/metrics`` be read without a key."""
    enable_debug: bool = False
    """Serve ``/debug`` routes and take ``debug_config``."""
    allow_lora_updates: bool = False
    """Serve the routes that load and unload LoRA adapters: whoever may call them has the server read its files."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port must lie in 0 .. 65535, not {self.port}")
        for name in ("drain_timeout", "failure_grace"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a number of seconds, at least 0, not {getattr(self, name)!r}")
        for name in _TIMEOUTS:
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a number of seconds above 0, not {getattr(self, name)!r}")
        for name in _SIZES:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not all(_KEY.fullmatch(key) for key in self.api_keys):
            raise ValueError("an API key must be of printable ASCII characters without spaces")
        for origin in self.cors_origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(f"cors_origins must be of the form 'https://chat.example:8443', not {origin!r}")
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
