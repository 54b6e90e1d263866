"""The API pages: the description, and a page that shows it, all from this process.

Swagger UI is vendored in ``static``, unchanged. The page needs no internet, and its content
security policy lets nothing in from elsewhere.
"""

from collections.abc import Awaitable, Callable
from functools import lru_cache
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

import smsgw
from smsgw.api.openapi import document
from smsgw.api.operations import operations
from smsgw.api.wire import to_json

STATIC: Final = Path(__file__).parent / "static"
FILES: Final = {
    "/docs": ("docs.html", "text/html"),
    "/docs/docs.js": ("docs.js", "text/javascript"),
    "/docs/swagger-ui-bundle.js": ("swagger-ui-bundle.js", "text/javascript"),
    "/docs/swagger-ui.css": ("swagger-ui.css", "text/css"),
}
HEADERS: Final = {
    "cache-control": "no-cache",
    "content-security-policy": (
        "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; "
        "base-uri 'none'; frame-ancestors 'none'; object-src 'none'"
    ),
    "x-content-type-options": "nosniff",
}


def docs_routes(*, dev: bool, national_numbers: bool = False) -> list[Route]:
    """The routes of the API pages.

    Args:
        dev: whether the sandbox has routes.
        national_numbers: whether ``numbers.default_region`` is set.
    """

    # Made when first asked for: the command line opens this application too, and must be quick.
    @lru_cache(maxsize=1)
    def description() -> bytes:
        return to_json(
            document(operations(dev=dev), smsgw.__version__, national_numbers=national_numbers)
        )

    async def openapi(_request: Request) -> Response:
        """``GET /openapi.json``."""
        return Response(description(), headers=HEADERS, media_type="application/json")

    return [
        *(
            Route(path, _file(name, media_type), methods=["GET"])
            for path, (name, media_type) in FILES.items()
        ),
        Route("/openapi.json", openapi, methods=["GET"]),
    ]


def _file(name: str, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    async def serve(_request: Request) -> Response:
        return FileResponse(STATIC / name, headers=HEADERS, media_type=media_type)

    return serve
