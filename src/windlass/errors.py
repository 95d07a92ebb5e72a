"""Every exception Windlass raises on purpose.

WindlassError
  EngineError(RuntimeError)
    EngineTerminatedError      the engine was terminated, or is draining or terminating
    EngineFailedError          its loop or native code failed; __cause__ is the original exception
    EngineUnloadedError        no model is loaded
    EngineForkedError          the engine was used in a forked child
    EngineOverloadedError      the queue is full; .retry_after in seconds
  LoadError                    the model cannot be loaded; .path, .reason
    DownloadError              it cannot be downloaded; .code
  RequestError
    InvalidRequestError(ValueError)    .param, .code
      ContextLengthError               the prompt is longer than the context
    RequestAbortedError                aborted by id, reset or unload
    RequestTimeoutError(TimeoutError)
"""

from __future__ import annotations

import os


class WindlassError(Exception):
    """Base of all errors of this package."""


class EngineError(WindlassError, RuntimeError):
    """The engine cannot serve; the message names its state and what the user can do."""


class EngineTerminatedError(EngineError):
    """The engine was terminated, or is draining or terminating."""


class EngineFailedError(EngineError):
    """The engine's loop or its native code failed; ``__cause__`` is the original exception."""


class EngineUnloadedError(EngineError):
    """No model is loaded."""


class EngineForkedError(EngineError):
    """The engine belongs to the parent process."""


class EngineOverloadedError(EngineError):
    """The queue is full.

    Attributes:
        retry_after: seconds after which trying again is sensible.
    """

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class LoadError(WindlassError):
    """The model cannot be loaded.

    Attributes:
        path: the file or directory that is at fault.
        reason: what is wrong with it and, where it helps, what is accepted.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(f"{os.fspath(path)}: {reason}")
        self.path = os.fspath(path)
        self.reason = reason


class DownloadError(LoadError):
    """The model cannot be downloaded.

    Attributes:
        code: ``unauthorized`` (the token is not accepted), ``forbidden`` (nor is who asks), ``not_found``,
            ``unreachable`` (no network, or a hub that is down), ``disk_full``, ``damaged`` (what came is not what the
            hub announced) or ``failed``.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str, *, code: str) -> None:
        super().__init__(path, reason)
        self.code = code


class RequestError(WindlassError):
    """One request failed; the engine is well."""


class InvalidRequestError(RequestError, ValueError):
    """The request was refused.

    Attributes:
        param: name of the argument at fault, or None.
        code: short machine-readable reason, as in OpenAI's error bodies.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ContextLengthError(InvalidRequestError):
    """The prompt is longer than the model's context."""

    def __init__(self, message: str, *, param: str | None = "messages") -> None:
        super().__init__(message, param=param, code="context_length_exceeded")


class RequestAbortedError(RequestError):
    """The request was aborted by its id, by ``reset()`` or by ``unload()``."""


class RequestTimeoutError(RequestError, TimeoutError):
    """The request did not finish within its ``timeout``."""
