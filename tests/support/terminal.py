"""A program on a terminal of its own: types at it and waits for what it says."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CTRL_C = "\x03"
CTRL_D = "\x04"

# Done by the program itself, since a preexec_fn is not safe beside threads. What a shell starts in the background
# ignores Ctrl-C, and so does all that it starts.
_TAKE_TERMINAL = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGINT, signal.default_int_handler)
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
sys.path.insert(0, {tests!r})
"""


class Terminal:
    """The controlling side of a pseudo-terminal. Every wait has a limit."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self._process = process
        self._descriptor = descriptor
        self._unread = ""

    def type(self, text: str) -> None:
        """Press these keys."""
        os.write(self._descriptor, text.encode())

    def expect(self, text: str, seconds: float = 30) -> str:
        """Wait for ``text`` and return everything up to and including it since the last ``expect``."""
        deadline = time.monotonic() + seconds
        while text not in self._unread:
            assert self._read(deadline - time.monotonic()), f"no {text!r} in {self._unread!r}"
        seen, _, self._unread = self._unread.partition(text)
        return seen + text

    def expect_anything(self, seconds: float = 30) -> None:
        """Wait until the program says more, whatever it is."""
        assert self._unread or self._read(seconds), "the program says nothing"

    def expect_prompt(self, prompt: str = "> ", seconds: float = 30) -> str:
        """Wait for the prompt and, where /proc tells it, until the program sleeps there.

        A signal that comes between readline's prompt and its wait for a key is seen only after the next key.
        """
        deadline = time.monotonic() + seconds
        seen = self.expect(prompt, seconds)
        status = Path(f"/proc/{self._process.pid}/stat")
        while status.exists() and status.read_text().rpartition(")")[2].split()[0] != "S":
            assert time.monotonic() < deadline, "the program never waits at its prompt"
            time.sleep(0.005)
        return seen

    def wait(self, seconds: float = 30) -> int:
        """Wait for the program's end and return its exit code; the rest of what it said is in ``rest``."""
        deadline = time.monotonic() + seconds
        while self._read(deadline - time.monotonic()):
            pass
        self.rest = self._unread
        return self._process.wait(max(0.1, deadline - time.monotonic()))

    def _read(self, seconds: float) -> bool:
        """Take in what is there within ``seconds``; False at the end of the output or of the time."""
        if not select.select([self._descriptor], [], [], max(0.0, seconds))[0]:
            return False
        try:
            content = os.read(self._descriptor, 65536)
        except OSError:  # how Linux reports that the other side was closed
            return False
        self._unread += content.decode()
        return bool(content)


@contextmanager
def on_terminal(script: str) -> Iterator[Terminal]:
    """Run a Python script with a new terminal as its standard streams and for Ctrl-C."""
    controller, program = pty.openpty()
    script = _TAKE_TERMINAL.format(tests=str(Path(__file__).resolve().parents[1])) + script
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=program,
        stdout=program,
        stderr=program,
        env={**os.environ, "TERM": "dumb"},
    )
    os.close(program)
    try:
        yield Terminal(process, controller)
    finally:
        process.kill()
        process.wait()
        os.close(controller)
