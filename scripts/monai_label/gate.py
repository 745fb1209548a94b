# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""What reaches MONAI Label's server at all: no large uploads, and none of the addresses that our app has no use for."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST_UPLOAD = 512 * 2**20  # bytes of a request
# Logs and places of this machine, models of others, sessions of the server's own, and what would restart the app.
CLOSED = {"logs", "model", "session", "batch", "scoring", "reload", "wsi", "wsi_v2"}


class Gate:
    """An ASGI application before another.

    Args:
        app: the server; most: bytes that a request may have.
    """

    def __init__(self, app: ASGIApp, most: int = LARGEST_UPLOAD) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, answered with status 404 or 413 when it does not pass."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        closed = CLOSED.intersection(scope["path"].split("/")[1:3])
        if closed:
            answer = JSONResponse({"detail": f"{closed.pop()}: is not served by PromptReg's app"}, 404)
            return await answer(scope, receive, send)
        told = dict(scope["headers"]).get(b"content-length", b"0")
        if not told.isdigit() or int(told) > self.most:
            return await JSONResponse({"detail": self._sentence}, 413)(scope, receive, send)
        came = 0

        async def counted() -> Message:
            nonlocal came
            message = await receive()
            came += len(message.get("body", b""))
            if came > self.most:  # sent without a length
                raise HTTPException(413, self._sentence)
            return message

        await self.app(scope, counted, send)

    @property
    def _sentence(self) -> str:
        return f"file: the request is larger than {self.most // 2**20} MB; crop or resample the image"
