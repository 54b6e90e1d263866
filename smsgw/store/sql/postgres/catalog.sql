-- migration: 1 first
-- The catalog: which slot lives in which shard, what holds for the whole store, and the gateways
-- that serve it. The schema's name takes the place of "catalog".

CREATE TABLE catalog.shard (
    number  smallint PRIMARY KEY CHECK (number BETWEEN 0 AND 255),
    address text NOT NULL UNIQUE
);

CREATE TABLE catalog.slot (
    slot       smallint PRIMARY KEY CHECK (slot BETWEEN 0 AND 4095),
    shard      smallint NOT NULL REFERENCES catalog.shard (number),
    moved_from smallint REFERENCES catalog.shard (number)
);

CREATE TABLE catalog.route (
    number    bigint PRIMARY KEY,
    providers text NOT NULL UNIQUE
);

CREATE TABLE catalog.pause (
    subject text PRIMARY KEY
);

CREATE TABLE catalog.meta (
    key   text PRIMARY KEY,
    value text NOT NULL
);

-- Every gateway has a number, which is in the ids it gives, and is a new incarnation whenever it
-- starts. ``name`` is the data directory's, so that one that starts again is known at once.
CREATE TABLE catalog.gateway (
    number       smallint PRIMARY KEY CHECK (number BETWEEN 0 AND 15),
    incarnation  bigint NOT NULL UNIQUE,
    name         text NOT NULL UNIQUE,
    serving      boolean NOT NULL,
    started_at   timestamptz NOT NULL,
    heartbeat_at timestamptz NOT NULL,
    lease_until  timestamptz NOT NULL
) WITH (fillfactor = 20);
CREATE SEQUENCE catalog.incarnation;

-- How far each queue has come, over all shards and gateways.
CREATE TABLE catalog.virtual (
    route bigint NOT NULL,
    lane  smallint NOT NULL,
    rank  bigint NOT NULL,
    PRIMARY KEY (route, lane)
) WITH (fillfactor = 20);

-- migration: 2 incarnations
-- An incarnation is a time now: a sequence that was set back would give the same ones again.
DROP SEQUENCE catalog.incarnation;
