"""The baseline: Starlette and pydantic parse the same POST and answer 202; nothing is stored."""

import json
import socket
import uuid
from multiprocessing.connection import Connection
from typing import Any

import uvicorn
from pydantic import BaseModel, ConfigDict
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from smsgw.bench.processes import tell_about_ourselves


class BareMessage(BaseModel):
    """The fields of a message, as the gateway has them."""

    model_config = ConfigDict(strict=True, extra="forbid")

    client_id: uuid.UUID
    to: str
    sender: str
    text: str
    reference: str | None = None


async def take(request: Request) -> Response:
    """Parse and answer."""
    raw = await request.body()
    message = BareMessage.model_validate_json(raw.replace(b'"from"', b'"sender"', 1))
    content = {
        "message_id": str(message.client_id),
        "status": "QUEUED",
        "parts": 1,
        "encoding": "GSM-7",
        "cost": 5,
        "credits": 0,
    }
    return Response(json.dumps(content), 202, media_type="application/json")


def serve(line: "Connection[Any, Any]", listener: socket.socket) -> None:
    """Serve until killed."""
    tell_about_ourselves(line)
    app = Starlette(routes=[Route("/v1/messages", take, methods=["POST"])])
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", ws="none")
    uvicorn.Server(config).run(sockets=[listener])
