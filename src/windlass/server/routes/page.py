"""The page to talk to the models: static files, served from memory."""

from __future__ import annotations

import hashlib
from importlib.resources import files

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from windlass.server.context import Context

FILES = {
    "index.html": "text/html",
    "page.css": "text/css",
    **dict.fromkeys(
        (
            "answer.js",
            "api.js",
            "chats.js",
            "elements.js",
            "inline.js",
            "main.js",
            "markdown.js",
            "markdown_view.js",
            "messages.js",
            "scroll.js",
            "settings.js",
            "sse.js",
            "theme.js",
            "transcript.js",
            "watch.js",
        ),
        "text/javascript",
    ),
}
"""Name -> media type of each file."""

PATHS = {"/" if name == "index.html" else f"/page/{name}": name for name in FILES}
"""Path -> name of the file that is served there."""

# Nothing from elsewhere, nothing inline: were model text ever taken for markup, it could not do anything.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)


class PageFile:
    """A file in memory, and what goes with it."""

    def __init__(self, name: str) -> None:
        self._content = (files("windlass.server") / "page" / name).read_bytes()
        self._media_type = f"{FILES[name]}; charset=utf-8"
        self._headers = {
            "cache-control": "no-cache",
            "content-security-policy": CONTENT_SECURITY_POLICY,
            "etag": f'"{hashlib.sha256(self._content).hexdigest()[:32]}"',
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
        }

    async def __call__(self, request: Request) -> Response:
        """Answer, with 304 where the browser has this version."""
        known = (tag.strip() for tag in request.headers.get("if-none-match", "").split(","))
        if any(tag.removeprefix("W/") == self._headers["etag"] for tag in known):
            return Response(status_code=304, headers=self._headers)
        return Response(self._content, headers=self._headers, media_type=self._media_type)


def make_router(_context: Context) -> APIRouter:
    """Return the routes, with the files read."""
    router = APIRouter()
    for path, name in PATHS.items():
        router.add_route(path, PageFile(name).__call__, methods=["GET", "HEAD"], include_in_schema=False)
    return router
