"""A server that is started for a measurement and ended after it."""

from __future__ import annotations

import http.client
import os
import shlex
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

READY_LIMIT = 600.0
END_LIMIT = 60.0
_PROBES = ("/readyz", "/health")


class ServerError(Exception):
    """The server does not start, or does not end; the message has the end of what it said."""


class StartedServer:
    """A process on a free port of this machine, from when it is ready to ``close()``.

    Args:
        command: as in a shell, without pipes; ``{port}`` stands for the port, and ``--port`` is added without it.

    Raises:
        ServerError: it ended, or was not ready within ``READY_LIMIT`` seconds.
    """

    def __init__(self, command: str) -> None:
        self.port = _free_port()
        words = shlex.split(command if "{port}" in command else command + " --port {port}")
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [word.replace("{port}", str(self.port)) for word in words],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        try:
            self._wait_until_ready()
        except BaseException:
            self._process.kill()
            self._process.wait()
            self._log.close()
            raise

    @property
    def url(self) -> str:
        """The base URL for OpenAI's clients."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def pid(self) -> int:
        return self._process.pid

    def processor_seconds(self) -> float | None:
        """Processor time so far; None where the system does not tell."""
        stat = Path(f"/proc/{self.pid}/stat")
        if not stat.exists():
            return None
        fields = stat.read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> int:
        """Ask it to end and return its exit status.

        Raises:
            ServerError: it had to be killed.
        """
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(END_LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise ServerError(f"the server did not end within {END_LIMIT:.0f} s of SIGTERM: {self._said()}") from None
        finally:
            self._log.close()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_LIMIT
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise ServerError(f"the server ended with status {self._process.returncode}: {self._said()}")
            if any(self._answers(path) for path in _PROBES):
                return
            time.sleep(0.1)
        raise ServerError(f"the server was not ready within {READY_LIMIT:.0f} s: {self._said()}")

    def _answers(self, path: str) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5.0)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _said(self) -> str:
        self._log.seek(0)
        return self._log.read()[-1500:].decode(errors="replace").strip()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
