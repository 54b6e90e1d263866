"""The description is valid, complete, and what the routes really do; its page needs no internet."""

import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import pytest
from openapi_spec_validator import validate
from pydantic import TypeAdapter
from starlette.routing import Route, Router
from typing_extensions import is_typeddict

import smsgw
from smsgw.api import answers, schemas
from smsgw.api.app import public_app, public_routes
from smsgw.api.docs import FILES, STATIC, docs_routes
from smsgw.api.openapi import EVERYWHERE, Operation, document
from smsgw.api.operations import operations
from smsgw.api.problems import PROBLEMS
from smsgw.gateway import Gateway
from tests.conftest import OpenGateway
from tests.support import add_client

OPERATIONS = operations(dev=True)
DOCUMENT = document(OPERATIONS, "1.2.3")
ADMIN_ONLY = {"already_exists"}
ANSWERS = [value for value in vars(answers).values() if is_typeddict(value)]
REQUESTS = [
    value
    for value in vars(schemas).values()
    if isinstance(value, type) and issubclass(value, schemas.Body)
]


def walk(node: Any) -> Iterator[dict[str, Any]]:
    """Every object in a document."""
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from walk(value)
    elif isinstance(node, list):
        for value in node:
            yield from walk(value)


def resolved(reference: str, described: dict[str, Any]) -> Any:
    node: Any = described
    for step in reference.removeprefix("#/").split("/"):
        node = node[step]
    return node


# The document


@pytest.mark.parametrize("dev", [False, True])
def test_the_document_is_valid_openapi(dev: bool) -> None:
    validate(document(operations(dev=dev), "1", servers=["http://localhost:8080"]))


def test_every_reference_leads_somewhere_and_every_component_is_used() -> None:
    used = {node["$ref"] for node in walk(DOCUMENT) if "$ref" in node}
    for reference in used:
        assert resolved(reference, DOCUMENT)
    for kind in ("schemas", "responses"):
        named = {f"#/components/{kind}/{name}" for name in DOCUMENT["components"][kind]}
        assert named <= used


def test_the_sandbox_is_there_for_developers_only() -> None:
    both = {(operation.method, operation.path) for operation in OPERATIONS}
    without = {(operation.method, operation.path) for operation in operations(dev=False)}
    sandbox = "/v1/sandbox/messages"
    assert both - without == {("GET", sandbox), ("DELETE", sandbox)}


def test_receipts_need_a_token_unless_the_mock_sends_them() -> None:
    def security(*, dev: bool) -> Any:
        described = document(operations(dev=dev), "1")
        return described["paths"]["/v1/providers/{name}/dlr"]["post"]["security"]

    assert security(dev=False) == [{"receiptToken": []}]
    assert security(dev=True) == [{"receiptToken": []}, {}]


def test_operations_have_names_of_their_own() -> None:
    assert len({operation.name for operation in OPERATIONS}) == len(OPERATIONS)


def test_every_code_is_answered_by_some_operation_under_its_status() -> None:
    codes: dict[str, int] = {}
    for path in DOCUMENT["paths"].values():
        for operation in path.values():
            for status, response in operation["responses"].items():
                if "$ref" in response:
                    content = resolved(response["$ref"], DOCUMENT)["content"]
                    _, own = content["application/problem+json"]["schema"]["allOf"]
                    codes |= dict.fromkeys(own["properties"]["code"]["enum"], int(status))
    assert codes == {
        code: status for code, (status, _) in PROBLEMS.items() if code not in ADMIN_ONLY
    }


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_what_any_request_may_meet_is_declared_everywhere(operation: Operation) -> None:
    described = DOCUMENT["paths"][operation.path][operation.method.lower()]
    declared = {int(status) for status in described["responses"]}
    assert {PROBLEMS[code][0] for code in EVERYWHERE} <= declared
    assert (415 in declared) == (operation.request is not None)
    assert operation.answers.keys() <= declared
    assert ("requestBody" in described) == (operation.request is not None)


def test_examples_of_problems_are_what_is_really_answered() -> None:
    for response in DOCUMENT["components"]["responses"].values():
        for code, example in response["content"]["application/problem+json"]["examples"].items():
            assert (example["value"]["code"], example["value"]["status"]) == (
                code,
                PROBLEMS[code][0],
            )
            TypeAdapter(answers.Problem).validate_python(example["value"], strict=True)


def test_retry_after_is_promised_where_trying_again_makes_sense() -> None:
    for name, response in DOCUMENT["components"]["responses"].items():
        header = response["headers"].get("Retry-After")
        assert (header is not None) == name.startswith(("429", "503"))
        if header is not None:
            header = resolved(header["$ref"], DOCUMENT) if "$ref" in header else header
            assert header["required"] == ("otp_undeliverable" not in name)


def test_fields_that_are_not_described_do_not_exist() -> None:
    for name, schema in DOCUMENT["components"]["schemas"].items():
        assert schema.get("additionalProperties", True) is (name == "Problem"), name
        assert "sender" not in schema["properties"]


def test_where_national_numbers_are_read_no_pattern_refuses_them() -> None:
    described = document(OPERATIONS, "1", national_numbers=True)
    before, after = DOCUMENT["components"]["schemas"], described["components"]["schemas"]
    for name in ("MessageRequest", "PreviewRequest", "BatchItem", "VerifyRequest"):
        assert before[name]["properties"]["to"]["pattern"] == schemas.E164_PATTERN
        assert "pattern" not in after[name]["properties"]["to"]
    # What we say ourselves is in E.164 form all the same.
    assert after["Message"] == before["Message"]


@pytest.mark.parametrize("model", [*ANSWERS, *REQUESTS], ids=lambda model: model.__name__)
def test_every_example_is_what_it_is_an_example_of(model: type) -> None:
    if model.__name__ in DOCUMENT["components"]["schemas"]:
        schema = DOCUMENT["components"]["schemas"][model.__name__]
        for example in schema.get("examples", []):
            TypeAdapter(model).validate_json(json.dumps(example), strict=True)


def test_a_batch_is_described_by_its_items() -> None:
    items = DOCUMENT["components"]["schemas"]["BatchRequest"]["properties"]["messages"]
    assert items["items"] == {"$ref": "#/components/schemas/BatchItem"}
    assert (items["minItems"], "maxItems" in items) == (1, False)
    assert DOCUMENT["components"]["schemas"]["BatchItem"]["required"] == ["to"]


# The routes


@pytest.fixture
async def gateway(gateway_of: OpenGateway) -> Gateway:
    return await gateway_of()


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator["Client"]:
    client_id = await add_client(gateway)
    transport = httpx2.ASGITransport(app=public_app(gateway))
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
        yield Client(http, f"{client_id.hex()}")


class Client:
    """Asks the application, and compares each answer with what the document says of it."""

    def __init__(self, http: httpx2.AsyncClient, client_id: str) -> None:
        self._http = http
        self.id = re.sub("(.{8})(.{4})(.{4})(.{4})(.{12})", r"\1-\2-\3-\4-\5", client_id)

    async def ask(
        self, name: str, status: int, body: Any = None, /, key: str = "", **where: str
    ) -> Any:
        """The parsed answer to an operation; ``where`` fills its path, then its query."""
        operation = next(each for each in OPERATIONS if each.name == name)
        path = re.sub("{(.*?)}", lambda match: where.pop(match[1]), operation.path)
        content = {} if body is None else {"json": body}
        headers = {"Idempotency-Key": key} if key else {}
        response = await self._http.request(
            operation.method, path, params=where, headers=headers, **content
        )
        assert response.status_code == status, response.text
        described = DOCUMENT["paths"][operation.path][operation.method.lower()]
        assert str(status) in described["responses"]
        if status >= 400:
            problem = response.json()
            TypeAdapter(answers.Problem).validate_json(response.content)
            declared = described["responses"][str(status)]["$ref"].split(".")
            assert problem["code"] in declared
            return problem
        model = operation.answers[status].body
        if model is None:
            return response.text
        TypeAdapter(model).validate_json(response.content)
        return response.json()

    def message(self, **changes: Any) -> dict[str, Any]:
        usual = {"client_id": self.id, "to": "+15005550006", "from": "ACME", "text": "Hello"}
        return usual | changes


async def test_every_route_is_described_and_every_description_has_a_route(
    gateway: Gateway,
) -> None:
    routed = set()
    for route in public_routes(gateway):
        assert isinstance(route, Route)
        if not route.path.startswith("/docs/"):
            methods = route.methods or {"GET", "POST"}
            routed |= {(method, route.path) for method in methods - {"HEAD"}}
    assert routed == {(operation.method, operation.path) for operation in OPERATIONS}


async def test_answers_about_messages_are_what_is_described(client: Client) -> None:
    sent = await client.ask("sendMessage", 202, client.message(reference="a", express=True))
    batch = [client.message(), client.message(to="x"), client.message(colour="red")]
    items = [{key: item[key] for key in item if key != "client_id"} for item in batch]
    many = await client.ask("sendBatch", 202, {"client_id": client.id, "messages": items})
    assert [result.get("code") for result in many["results"]] == [
        None,
        "invalid_recipient",
        "invalid_request",
    ]
    later = await client.ask(
        "sendMessage", 202, client.message(send_at="2026-06-01T00:00:00+03:30")
    )
    whole = await client.ask("getMessage", 200, id=sent["message_id"], wait_s="60")
    assert whole["status"] == "DELIVERED"
    await client.ask("cancelMessage", 200, {"client_id": client.id}, id=later["message_id"])
    await client.ask("cancelBatch", 200, {"client_id": client.id}, batch_id=many["batch_id"])
    await client.ask("previewMessage", 200, client.message(text="سلام"))
    mine = {"client_id": client.id, "to": "+15005550006", "limit": "1"}
    first = await client.ask("listMessages", 200, **mine)
    second = await client.ask("listMessages", 200, cursor=first["next_cursor"], **mine)
    assert first["data"] != second["data"]
    await client.ask("listSandbox", 200, to="+15005550006")
    await client.ask("clearSandbox", 204)


async def test_answers_about_codes_and_money_are_what_is_described(client: Client) -> None:
    request = client.message(otp=True)
    del request["text"]
    sent = await client.ask("sendMessage", 200, request)
    guess = {"client_id": client.id, "to": "+15005550006", "code": "000000x"}
    await client.ask("verifyCode", 200, guess)
    await client.ask("verifyCode", 200, guess | {"code": sent["otp_code"]})
    await client.ask("verifyCode", 404, guess)
    await client.ask("sendMessage", 503, client.message(otp=True, to="+15005550001"))
    await client.ask("getAccount", 200, client_id=client.id)
    statement = await client.ask("getStatement", 200, client_id=client.id)
    assert statement["data"]
    for group in ("day", "status", "sender"):
        await client.ask("getReport", 200, client_id=client.id, group_by=group, since="2026-01-01")


async def test_refusals_are_what_is_described(client: Client) -> None:
    nobody = {"client_id": "00000000-0000-4000-8000-000000000000"}
    await client.ask("sendMessage", 400, client.message(colour="red"))
    await client.ask("sendMessage", 400, client.message(to="12"))
    await client.ask("sendMessage", 404, client.message(**nobody))
    await client.ask("sendBatch", 400, {"client_id": client.id, "messages": []})
    item = {"to": "x", "from": "ACME", "text": "Hello"}
    refused = await client.ask("sendBatch", 400, {"client_id": client.id, "messages": [item]})
    assert refused["results"][0]["code"] == "invalid_recipient"
    await client.ask("getMessage", 400, id="x")
    await client.ask("getMessage", 404, id=nobody["client_id"])
    await client.ask("listMessages", 400)
    await client.ask("listMessages", 400, client_id=client.id, colour="red")
    await client.ask("listMessages", 404, **nobody)
    await client.ask("getAccount", 404, **nobody)
    await client.ask("getStatement", 400, client_id=client.id, cursor="x")
    await client.ask("getReport", 400, client_id=client.id, group_by="month")
    sent = await client.ask("sendMessage", 202, client.message(), key="k")
    assert await client.ask("sendMessage", 202, client.message(), key="k") == sent
    await client.ask("sendMessage", 422, client.message(text="Other"), key="k")
    await client.ask("getMessage", 200, id=sent["message_id"], wait_s="60")
    await client.ask("cancelMessage", 409, {"client_id": client.id}, id=sent["message_id"])
    item = {"to": "+15005550006", "from": "ACME", "text": "x" * 1530}
    short = {"client_id": client.id, "all_or_nothing": True, "messages": [item] * 30}
    assert (await client.ask("sendBatch", 402, short))["required"] == 50
    receipt = {"provider_message_id": "1", "status": "DELIVRD"}
    await client.ask("takeReceipt", 204, receipt, name="mock")
    await client.ask("takeReceipt", 404, receipt, name="nobody")


async def test_answers_about_the_gateway_are_what_is_described(client: Client) -> None:
    assert await client.ask("getHealth", 200) == {"status": "ok"}
    await client.ask("getReadiness", 200)
    assert "# TYPE" in await client.ask("getMetrics", 200)
    served = json.loads(await client.ask("getDescription", 200))
    assert served == json.loads(json.dumps(document(OPERATIONS, smsgw.__version__)))
    assert "<!doctype html>" in await client.ask("getDocs", 200)


# The page


async def page(path: str) -> httpx2.Response:
    transport = httpx2.ASGITransport(app=Router(docs_routes(dev=False)))
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
        return await http.get(path)


async def test_the_page_asks_nobody_but_the_gateway() -> None:
    html = (await page("/docs")).text
    wanted = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert {"docs/swagger-ui.css", "docs/swagger-ui-bundle.js", "docs/docs.js"} <= set(wanted)
    for link in wanted:
        assert link == "data:," or (await page(f"/{link}")).status_code == 200
    script = (STATIC / "docs.js").read_text()
    assert "validatorUrl: null" in script
    assert "//" not in re.sub(r"^\s*//.*$", "", script, flags=re.MULTILINE)
    assert not re.findall(
        r"(?:url\(|@import )[\"']?(?:https?:)?//", (STATIC / "swagger-ui.css").read_text()
    )


@pytest.mark.parametrize("path", [*FILES, "/openapi.json"])
async def test_the_page_lets_nothing_in_from_elsewhere(path: str) -> None:
    response = await page(path)
    assert response.status_code == 200
    assert response.headers["x-content-type-options"] == "nosniff"
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'self';")
    assert "script-src" not in policy
    assert "http" not in policy


def test_the_page_has_no_script_of_its_own_that_the_policy_would_stop() -> None:
    html = (STATIC / "docs.html").read_text()
    assert re.findall(r"<script[^>]*>(.*?)</script>", html, re.DOTALL) == ["", ""]
    assert " on" not in " ".join(re.findall(r"<[^>]*>", html))


def test_what_is_vendored_comes_with_its_licences() -> None:
    bundle = STATIC / "swagger-ui-bundle.js"
    named = re.search(r"license information please see (\S+)", bundle.read_text()[:500])
    assert named is not None
    assert (STATIC / named[1]).is_file()
    assert "Apache License" in (STATIC / "swagger-ui.LICENSE").read_text()
    assert "SmartBear" in (STATIC / "swagger-ui.NOTICE").read_text()
