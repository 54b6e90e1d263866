-- migration: 1 first
-- The catalog: which slot lives in which shard, and what holds for the whole gateway.

CREATE TABLE shard (
    number  INTEGER PRIMARY KEY CHECK (number BETWEEN 0 AND 255),
    address TEXT NOT NULL UNIQUE
) STRICT;

CREATE TABLE slot (
    slot       INTEGER PRIMARY KEY CHECK (slot BETWEEN 0 AND 4095),
    shard      INTEGER NOT NULL REFERENCES shard (number),
    moved_from INTEGER REFERENCES shard (number)
) STRICT;

-- A route is a set of operators, named once and never renumbered; queues refer to it.
CREATE TABLE route (
    number    INTEGER PRIMARY KEY,
    providers TEXT NOT NULL UNIQUE
) STRICT;

-- What is paused: '' for everything, else a provider's name.
CREATE TABLE pause (
    subject TEXT PRIMARY KEY
) STRICT, WITHOUT ROWID;

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
