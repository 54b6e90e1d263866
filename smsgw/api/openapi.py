"""The API's description as OpenAPI 3.1, made from the models and from what routes can answer.

``operations`` says what there is; this module only spells it out.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema as core

from smsgw import errors
from smsgw.api.answers import Problem
from smsgw.api.problems import PROBLEMS, problem
from smsgw.api.schemas import BatchItem
from smsgw.errors import OtpUndeliverable, SmsgwError

JSON: Final = "application/json"
PROBLEM_JSON: Final = "application/problem+json"

DESCRIPTION: Final = """\
Prepaid SMS: a message and its money move together, and nothing accepted is ever lost.

Money is integer cents, times are RFC 3339 in UTC, ids are UUIDs, bodies are JSON in UTF-8. There is
no authentication: `client_id` is a name, not a credential. Lists go on with `cursor`.

Every error is a problem document (RFC 9457); programs go by its `code`. Every answer carries
`X-Request-ID`: yours, if you sent one.
"""

EVERYWHERE: Final = (
    "invalid_request",
    "malformed_request",
    "forbidden_host",
    "method_not_allowed",
    "request_timeout",
    "body_too_large",
    "headers_too_large",
    "internal_error",
    "shutting_down",
    "too_many_connections",
)
"""What any route may answer, as it is found before or around the routes."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """Something beside the body that a request can say."""

    name: str
    place: str
    schema: Mapping[str, Any]
    description: str
    required: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """A success: its body as JSON, and as what other media types."""

    description: str
    body: type | None = None
    other: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Operation:
    """One route and method: what it takes, and everything it can answer.

    ``problems`` are the codes it can answer beside those in ``EVERYWHERE``.
    """

    method: str
    path: str
    name: str
    tag: str
    summary: str
    description: str
    answers: Mapping[int, Answer]
    problems: tuple[str, ...] = ()
    request: type | None = None
    parameters: tuple[Parameter, ...] = ()
    security: tuple[Mapping[str, Sequence[str]], ...] = field(default=())


def document(
    operations: Sequence[Operation],
    version: str,
    *,
    servers: Iterable[str] = (),
    national_numbers: bool = False,
) -> dict[str, Any]:
    """The OpenAPI document.

    Args:
        operations: all there is.
        version: of the API, that is of the package.
        servers: addresses; by default that from which the document was fetched.
        national_numbers: recipients need not be in E.164 form.
    """
    schemas = _Schemas(operations, national_numbers=national_numbers)
    responses: dict[str, Any] = {}
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        path = paths.setdefault(operation.path, {})
        path[operation.method.lower()] = _operation(operation, schemas, responses)
    described: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "smsgw",
            "version": version,
            "description": DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "responses": responses,
            "headers": _HEADERS,
            "securitySchemes": {
                "receiptToken": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The operator's `receipt_token`, since receipts move money.",
                }
            },
        },
    }
    if addresses := [{"url": url} for url in servers]:
        described["servers"] = addresses
    return described


_HEADERS: Final[dict[str, dict[str, Any]]] = {
    "RequestId": {
        "description": "The `X-Request-ID` of the request, or one that we made.",
        "schema": {"type": "string"},
    },
    "RetryAfter": {
        "description": "Seconds after which trying again makes sense.",
        "required": True,
        "schema": {"type": "integer", "minimum": 1},
    },
    "Allow": {
        "description": "The methods that the route knows.",
        "schema": {"type": "string"},
    },
}
_REQUEST_ID: Final[dict[str, Any]] = {"X-Request-ID": {"$ref": "#/components/headers/RequestId"}}
_MORE_HEADERS: Final = {
    405: {"Allow": {"$ref": "#/components/headers/Allow"}},
    429: {"Retry-After": {"$ref": "#/components/headers/RetryAfter"}},
    503: {"Retry-After": {"$ref": "#/components/headers/RetryAfter"}},
}


class _Generator(GenerateJsonSchema):
    """pydantic's, without titles that repeat names and with null as one of the types."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        """Never: it would be the field's name again."""
        return False

    def nullable_schema(self, schema: core.NullableSchema) -> JsonSchemaValue:
        """``"type": ["string", "null"]``, where the type is one word."""
        inner = self.generate_inner(schema["schema"])
        if isinstance(inner.get("type"), str) and "enum" not in inner:
            return {**inner, "type": [inner["type"], "null"]}
        return super().nullable_schema(schema)

    def default_schema(self, schema: core.WithDefaultSchema) -> JsonSchemaValue:
        """Without a default of null: it stands for leaving the field out."""
        described = super().default_schema(schema)
        if schema.get("default") is None:
            described.pop("default", None)
        return described


class _Schemas:
    """The schemas of all bodies, by name, and where each is referred to."""

    def __init__(self, operations: Iterable[Operation], *, national_numbers: bool) -> None:
        bodies = {Problem, BatchItem}
        for operation in operations:
            bodies |= {answer.body for answer in operation.answers.values() if answer.body}
            bodies |= {operation.request} if operation.request else set()
        ordered = sorted(bodies, key=lambda body: body.__name__)
        self._refs, definitions = TypeAdapter.json_schemas(
            [(body.__name__, "validation", TypeAdapter(body)) for body in ordered],
            ref_template="#/components/schemas/{model}",
            schema_generator=_Generator,
        )
        self.components: dict[str, Any] = definitions["$defs"]
        if national_numbers:
            for component in self.components.values():
                recipient = component.get("properties", {}).get("to", {})
                if component["title"].endswith(("Request", "Item")):
                    recipient.pop("pattern", None)

    def ref(self, body: type) -> JsonSchemaValue:
        """A reference to a body's schema."""
        return self._refs[body.__name__, "validation"]


def _operation(
    operation: Operation, schemas: _Schemas, responses: dict[str, Any]
) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.name,
        "tags": [operation.tag],
        "summary": operation.summary,
        "description": operation.description,
        "parameters": [_parameter(parameter) for parameter in operation.parameters],
        "responses": {
            str(status): _answer(answer, schemas) for status, answer in operation.answers.items()
        },
    }
    if operation.request is not None:
        content = {JSON: {"schema": schemas.ref(operation.request)}}
        described["requestBody"] = {"required": True, "content": content}
    if operation.security:
        described["security"] = list(operation.security)
    for status, codes in _by_status(operation).items():
        name = ".".join((str(status), *codes))
        if name not in responses:
            responses[name] = _problem(status, codes)
        described["responses"][str(status)] = {"$ref": f"#/components/responses/{name}"}
    return described


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "description": parameter.description,
        "required": parameter.required,
        "schema": parameter.schema,
    }


def _answer(answer: Answer, schemas: _Schemas) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if answer.body is not None:
        content[JSON] = {"schema": schemas.ref(answer.body)}
    for media_type in answer.other:
        is_json = media_type == JSON
        content[media_type] = {"schema": {"type": "object" if is_json else "string"}}
    described: dict[str, Any] = {"description": answer.description, "headers": _REQUEST_ID}
    if content:
        described["content"] = content
    return described


def _by_status(operation: Operation) -> dict[int, list[str]]:
    """The codes that an operation can answer, by their HTTP status, in the order of both."""
    possible = {*EVERYWHERE, *operation.problems}
    if operation.request is not None:
        possible.add("unsupported_media_type")
    by_status: dict[int, list[str]] = {}
    for code, (status, _) in PROBLEMS.items():
        if code in possible:
            by_status.setdefault(status, []).append(code)
    return by_status


def _problem(status: int, codes: Sequence[str]) -> dict[str, Any]:
    headers = _REQUEST_ID | _MORE_HEADERS.get(status, {})
    if OtpUndeliverable.code in codes:
        # The one 503 after which trying again is no advice.
        headers["Retry-After"] = {**_HEADERS["RetryAfter"], "required": False}
    examples = _examples()
    return {
        "description": "; ".join(PROBLEMS[code][1] for code in codes),
        "headers": headers,
        "content": {
            PROBLEM_JSON: {
                "schema": {
                    "allOf": [
                        {"$ref": "#/components/schemas/Problem"},
                        {
                            "properties": {
                                "status": {"const": status},
                                "code": {"enum": list(codes)},
                            }
                        },
                    ]
                },
                "examples": {code: {"value": examples[code]} for code in codes},
            }
        },
    }


@lru_cache(maxsize=1)
def _examples() -> dict[str, Any]:
    """A document of each code, as it is really answered."""
    return {
        error.code: json.loads(problem(error())[1])
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, SmsgwError) and "code" in vars(error)
    }
