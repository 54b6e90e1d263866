"""The store: sharded files, one writer each, one transaction a turn.

Where ``pysqlite3`` is installed (the ``sqlite`` extra) its newer SQLite takes the place of the one
that Python brings: everywhere or nowhere, since two copies of SQLite in one process would drop each
other's locks on a file. It must happen before aiosqlite imports ``sqlite3``; everything of smsgw
that touches SQLite is imported after this module.
"""

import sys
from contextlib import suppress

if "aiosqlite" not in sys.modules:
    with suppress(ImportError):
        import pysqlite3

        sys.modules["sqlite3"] = pysqlite3
