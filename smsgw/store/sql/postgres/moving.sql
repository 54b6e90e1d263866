-- What is asked when a store moves into PostgreSQL or out of it, and no gateway is at work.

-- name: schema_is_there
-- Whether there is such a schema.
SELECT 1 FROM pg_namespace WHERE nspname = $1;

-- name: schemas_of_shards
-- The schemas that are named like a shard's.
SELECT nspname FROM pg_namespace WHERE nspname ~ '^smsgw_[0-9]{2,3}$' ORDER BY nspname;

-- name: catalog_clear
-- Let the catalog say nothing, to be written anew.
TRUNCATE catalog.slot, catalog.shard, catalog.route, catalog.pause, catalog.meta;

-- name: catalog_slot_add
-- Say where a slot is.
INSERT INTO catalog.slot (slot, shard, moved_from) VALUES ($1, $2, $3);

-- name: catalog_slot_set
-- Say where a slot is from now on, and where it was.
UPDATE catalog.slot SET shard = $2, moved_from = $3 WHERE slot = $1;

-- name: catalog_route_set
-- Name a route as it is named elsewhere.
INSERT INTO catalog.route (number, providers) VALUES ($1, $2);

-- name: catalog_meta_forget
-- Forget a value.
DELETE FROM catalog.meta WHERE key = $1;

-- name: seats_locked
-- Every seat, to be changed: whose it is, its incarnation, and whether that is alive.
SELECT number, incarnation, lease_until > clock_timestamp(), name FROM catalog.gateway
ORDER BY number FOR UPDATE;

-- name: seats_fence
-- Give every seat an incarnation that nobody has.
UPDATE catalog.gateway
SET incarnation = $1::bigint + number, serving = false, lease_until = '-infinity';

-- name: places_locked
-- Every gateway's place in a shard, to be changed: its incarnation, and whether that is alive.
SELECT number, incarnation, lease_until > clock_timestamp() FROM shard.gateway
ORDER BY number FOR UPDATE;

-- name: places_fence
-- Give every place in a shard, also one that was never taken, an incarnation that nobody has.
INSERT INTO shard.gateway (number, incarnation, lease_until, serial, waits)
SELECT n, $1::bigint + n, '-infinity', 0, 0 FROM generate_series(0, 15) AS n
ON CONFLICT (number) DO UPDATE SET
    incarnation = excluded.incarnation, lease_until = excluded.lease_until;

-- name: flows_forget
-- Forget the clients' places in queues, to count them again.
DELETE FROM shard.flow AS f WHERE NOT EXISTS (SELECT 1 FROM shard.client WHERE number = f.client);

-- name: flows_empty
-- Let nobody have a place in a queue, to count them again.
UPDATE shard.flow SET waiting = 0, parts = 0 WHERE waiting <> 0 OR parts <> 0;

-- name: flows_count
-- Count the clients' places in queues; where a client goes on is behind its last place.
INSERT INTO shard.flow AS f
    (client, route, lane, next_rank, waiting, parts, again_rank, served_rank)
SELECT client, route, lane, max(rank) + 1, count(*), sum(parts), 0, 0
FROM shard.queue GROUP BY client, route, lane
ON CONFLICT (client, route, lane) DO UPDATE SET
    next_rank = greatest(f.next_rank, excluded.next_rank),
    waiting = excluded.waiting, parts = excluded.parts;

-- name: backlog_forget
-- Forget how much is queued, to count it again.
DELETE FROM shard.backlog;

-- name: backlog_count
-- Count what is queued.
INSERT INTO shard.backlog (gateway, route, lane, messages, parts)
SELECT 0, route, lane, count(*), sum(parts) FROM shard.queue GROUP BY route, lane;

-- name: waits_forget
-- Forget how much waits, to count it again.
UPDATE shard.gateway SET waits = 0;

-- name: waits_count
-- Count what waits.
INSERT INTO shard.gateway AS g (number, incarnation, lease_until, serial, waits)
SELECT 0, 0, '-infinity', 0, coalesce(sum(waiting), 0) FROM shard.client
ON CONFLICT (number) DO UPDATE SET waits = excluded.waits;

-- name: flights_forget
-- Forget what is in flight, to note it again.
DELETE FROM shard.flight;

-- name: flights_note
-- Note what is in flight: nobody who is alive sends it, so whoever comes first decides about it.
INSERT INTO shard.flight (message, owner, attempt)
SELECT number, CASE status WHEN 2 THEN 0 END, attempts FROM shard.message WHERE status IN (2, 4);
