"""The running gateway against its own description: what it says of itself is what it does."""

import uuid
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.config import SchemathesisConfig

from tests.conftest import SiteOf
from tests.outside import Site
from tests.support import DEMO
