"""The SMSC and the client of smpp34 in a process of their own: its threads may crash at exit."""

import asyncio
import json
import socket
import sys
from typing import Any

import smpp34

FIELDS = (
    "service_type",
    "source_addr_ton",
    "source_addr_npi",
    "source_addr",
    "dest_addr_ton",
    "dest_addr_npi",
    "destination_addr",
    "esm_class",
    "protocol_id",
    "data_coding",
    "registered_delivery",
)


def tell(event: str, **fields: Any) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


def content(event: Any) -> dict[str, Any]:
    return {
        **{name: getattr(event, name) for name in FIELDS},
        "short_message": event.short_message.hex(),
        "tlvs": [[tlv.tag, tlv.value.hex()] for tlv in event.tlvs],
    }


async def report(session: Any, submit: Any, message_id: str) -> None:
    text = (
        f"id:{message_id} sub:001 dlvrd:001 submit date:2611231200 done date:2611231201"
        " stat:DELIVRD err:000 text:hello"
    )
    answer = await session.deliver_sm(
        destination_addr=submit.source_addr,
        dest_addr_ton=submit.source_addr_ton,
        dest_addr_npi=submit.source_addr_npi,
        source_addr=submit.destination_addr,
        source_addr_ton=submit.dest_addr_ton,
        source_addr_npi=submit.dest_addr_npi,
        esm_class=0x04,
        short_message=text.encode(),
    )
    tell("receipt", message_id=message_id, command_status=answer.command_status)


async def smsc(options: dict[str, Any]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    server = smpp34.Server("127.0.0.1", port, system_id="smpp34")
    await server.start()
    tell("listening", port=port)
    sessions: dict[str, Any] = {}
    reports = set()
    throttle = options.get("throttle", 0)
    number = 0
    while True:
        event = await server.next()
        if isinstance(event, smpp34.Esme):
            sessions[event.session_id] = event
            tell("bound", system_id=event.system_id, receives=event.can_receive)
        elif isinstance(event, smpp34.SubmitSmEvent) and throttle:
            throttle -= 1
            event.reject(smpp34.ESME_RTHROTTLED)
        elif isinstance(event, smpp34.SubmitSmEvent):
            number += 1
            message_id = f"{number:08x}"
            tell("submit", message_id=message_id, **content(event))
            event.accept(message_id)
            if options.get("receipts", True) and event.registered_delivery & 1:
                receivers = [one for one in sessions.values() if one.can_receive]
                near = sessions[event.session_id]
                session = near if near.can_receive else receivers[-1]
                task = asyncio.create_task(report(session, event, message_id))
                reports.add(task)
                task.add_done_callback(reports.discard)
        else:
            sessions.pop(event.session_id, None)
            tell("unbound")


async def client(options: dict[str, Any], port: int) -> None:
    esme = smpp34.Client("127.0.0.1", port, "esme", "secret", bind_type="TRX", window_size=10)
    link = await esme.connect()
    tell("bound", system_id=link.system_id)

    async def submit(number: int) -> None:
        answer = await link.submit_sm(
            f"98912{number:07d}",
            f"hello {number}".encode(),
            source_addr="ACME",
            source_addr_ton=5,
            dest_addr_ton=1,
            dest_addr_npi=1,
            registered_delivery=1,
        )
        tell("submit", message_id=answer.message_id, command_status=answer.command_status)

    count = options.get("count", 1)
    await asyncio.gather(*map(submit, range(count)))
    for _ in range(count):
        delivered = await link.next()
        assert isinstance(delivered, smpp34.DeliverSmEvent), delivered
        tell("delivered", **content(delivered))
    await link.unbind()
    tell("unbound")
    await esme.stop()


if __name__ == "__main__":
    given = json.loads(sys.argv[2])
    asyncio.run(smsc(given) if sys.argv[1] == "smsc" else client(given, given["port"]))
