-- What is asked of the catalog, and of the gateways that share a store.

-- name: catalog_shards
-- Where every shard is.
SELECT number, address FROM catalog.shard ORDER BY number;

-- name: catalog_slots
-- Which slot lives where.
SELECT slot, shard, moved_from FROM catalog.slot ORDER BY slot;

-- name: catalog_pauses
-- What is paused.
SELECT subject FROM catalog.pause;

-- name: catalog_meta
-- What holds for the whole store.
SELECT key, value FROM catalog.meta;

-- name: catalog_shard_add
-- Name a shard of a new store.
INSERT INTO catalog.shard (number, address) VALUES ($1, $2);

-- name: catalog_slots_deal
-- Deal the slots of a new store over its shards in turn.
INSERT INTO catalog.slot (slot, shard) SELECT n, n % $1::integer FROM generate_series(0, 4095) AS n;

-- name: catalog_meta_set
-- Keep a value.
INSERT INTO catalog.meta (key, value) VALUES ($1, $2)
ON CONFLICT (key) DO UPDATE SET value = excluded.value WHERE meta.value <> excluded.value;

-- name: catalog_pause
-- Pause something.
INSERT INTO catalog.pause (subject) VALUES ($1) ON CONFLICT DO NOTHING;

-- name: catalog_resume
-- Resume it.
DELETE FROM catalog.pause WHERE subject = $1;

-- name: catalog_routes
-- The routes that have a number.
SELECT providers, number FROM catalog.route;

-- name: catalog_route_add
-- Give a route the next number, for ever.
INSERT INTO catalog.route (number, providers)
SELECT coalesce(max(number), -1) + 1, $1 FROM catalog.route;

-- name: catalog_lock
-- Be the only one who changes the catalog, until the transaction ends.
LOCK TABLE catalog.shard IN EXCLUSIVE MODE;

-- name: gateways_locked
-- All gateways that were ever there, to be changed, and which of them are alive.
SELECT number, name, lease_until > clock_timestamp() FROM catalog.gateway ORDER BY number FOR UPDATE;

-- name: gateway_enter
-- Take a gateway's number, as a new incarnation. It is the time, in microseconds, so that it is a
-- new one also where the catalog was set back; but above all that are known, whatever the clock says.
INSERT INTO catalog.gateway AS g
    (number, incarnation, name, serving, started_at, heartbeat_at, lease_until)
VALUES ($1,
        greatest((extract(epoch FROM clock_timestamp()) * 1000000)::bigint, 1 + $4::bigint,
                 (SELECT 1 + max(incarnation) FROM catalog.gateway)),
        $2, false, clock_timestamp(), clock_timestamp(),
        clock_timestamp() + $3::double precision * interval '1 second')
ON CONFLICT (number) DO UPDATE SET
    incarnation = excluded.incarnation, name = excluded.name, serving = false,
    started_at = excluded.started_at, heartbeat_at = excluded.heartbeat_at,
    lease_until = excluded.lease_until
RETURNING incarnation;

-- name: gateway_beat
-- Say that a gateway is alive; no row where another process has taken its place.
UPDATE catalog.gateway SET
    heartbeat_at = clock_timestamp(), serving = $3,
    lease_until = clock_timestamp() + $4::double precision * interval '1 second'
WHERE number = $1 AND incarnation = $2
RETURNING number;

-- name: gateway_leave
-- Say that a gateway has ended.
UPDATE catalog.gateway SET serving = false, lease_until = clock_timestamp()
WHERE number = $1 AND incarnation = $2;

-- name: virtual_push
-- Tell how far queues have come: rows of numbers laid end to end; none goes back.
INSERT INTO catalog.virtual AS v (route, lane, rank)
SELECT rows.a[i], rows.a[i + 1], rows.a[i + 2]
FROM (SELECT :rows::bigint[] AS a) AS rows, generate_series(1, cardinality(rows.a), 3) AS i
ORDER BY 1, 2
ON CONFLICT (route, lane) DO UPDATE SET rank = excluded.rank WHERE v.rank < excluded.rank;

-- name: catalog_look
-- What other gateways may have changed: how far queues have come, what is paused, which gateways
-- send and which of them are alive; and whether the store is being moved, or its slots were. A lease
-- may have ended $1 seconds ago.
SELECT json_build_object(
    'now', extract(epoch FROM statement_timestamp()),
    'moving', (SELECT value FROM catalog.meta WHERE key = 'moving'),
    'epoch', (SELECT value::bigint FROM catalog.meta WHERE key = 'epoch'),
    'virtual', (SELECT json_agg(json_build_array(route, lane, rank)) FROM catalog.virtual),
    'paused', (SELECT json_agg(subject) FROM catalog.pause),
    'serving', (
        SELECT json_agg(json_build_array(
            number, lease_until > clock_timestamp() - $1::double precision * interval '1 second'))
        FROM catalog.gateway WHERE serving));

-- name: gateways_silence
-- Note of gateways that are dead that they send no more; one that is not says so again.
UPDATE catalog.gateway SET serving = false
WHERE number = ANY ($1::smallint[]) AND lease_until <= to_timestamp($2::double precision) AND serving;
