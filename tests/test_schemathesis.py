"""The running gateway against its own description: whatever it says of itself is what it does."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import SiteOf
from tests.outside import DELIVERED, Site, ahead
from tests.support import DEMO

# Waiting would only cost time. What is valid by the description alone may still be refused: for a
# text too long, a client unknown, a cursor of another list.
CONFIG = """
[parameters]
"query.wait_s" = 0
{known}

[checks]
positive_data_acceptance.enabled = false

[checks.not_a_server_error]
expected-statuses = ["2xx", "4xx", "503"]
"""


@pytest.mark.parametrize("known", [True, False])
def test_no_request_is_answered_in_a_way_that_is_not_described(
    site_of: SiteOf, tmp_path: Path, known: bool
) -> None:
    site = site_of(otp__deadline_ms=300)
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG.format(known=known_ids(site) if known else ""))
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run"]
    address = f"http://127.0.0.1:{site.served.port}/openapi.json"
    options = ["--seed", "1", "--max-examples", "25", "--generation-database", "none", "--no-color"]
    run = subprocess.run(
        [*command, address, *options],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    # All but the description itself.
    assert "20 selected / 20 total" in run.stdout
    log = (site.served.data.parent / "serve.log").read_text()
    assert '"level": "error"' not in log
    site.audit()


def known_ids(site: Site) -> str:
    """Ids of things that are there, so that requests get past the first 404."""
    item = {"to": DELIVERED, "from": "ACME", "text": "hello", "send_at": ahead(3600)}
    batch = site.post("/v1/messages/batch", {"client_id": DEMO, "messages": [item, item]}).body
    ids = {
        "query.client_id": DEMO,
        "path.id": batch["results"][0]["message_id"],
        "path.batch_id": batch["batch_id"],
        "path.name": "mock",
    }
    return "\n".join(f'"{name}" = "{value}"' for name, value in ids.items())
