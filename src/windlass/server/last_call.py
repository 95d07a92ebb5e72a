"""What stands before all else: at the end of a server, nobody waits any longer for the rest of a request."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from windlass.server.api_errors import shutting_down


class LastCall:
    """Passes requests on. After ``close``, one whose body is not all there raises in the middle of reading it.

    Belongs to the event loop in which it was made.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def close(self) -> None:
        """Let no request wait for the rest of its body. Idempotent."""
        if not self._closed.done():
            self._closed.set_result(None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application."""
        complete = False

        async def receive_part() -> Message:
            nonlocal complete
            if complete:
                return await receive()
            message = await self._unless_closed(receive)
            complete = not message.get("more_body", False)
            return message

        await self._app(scope, receive_part, send)

    async def _unless_closed(self, receive: Receive) -> Message:
        part = asyncio.ensure_future(_run(receive))
        try:
            await asyncio.wait((part, self._closed), return_when=asyncio.FIRST_COMPLETED)
            if part.done():
                return part.result()
            raise shutting_down()
        finally:
            part.cancel()


async def _run(receive: Receive) -> Message:
    return await receive()
