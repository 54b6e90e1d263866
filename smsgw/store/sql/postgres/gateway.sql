-- What a gateway asks a shard about itself and about the others that work on it.

-- name: own_enter
-- Begin to work on a shard, as a new incarnation. Who has just begun sends nothing: should something
-- be in flight under its incarnation, it is nobody's.
WITH entered AS (
    INSERT INTO shard.gateway AS g (number, incarnation, lease_until, serial, waits)
    VALUES ($1, $2, clock_timestamp() + $3::double precision * interval '1 second', 0, 0)
    ON CONFLICT (number) DO UPDATE SET
        incarnation = excluded.incarnation, lease_until = excluded.lease_until, serial = 0
    WHERE g.incarnation < excluded.incarnation
    RETURNING number),
disowned AS (
    UPDATE shard.flight SET owner = 0 WHERE owner = $2 AND EXISTS (SELECT FROM entered))
SELECT number FROM entered;

-- name: incarnation_last
-- The last incarnation that has begun to work on a shard.
SELECT coalesce(max(incarnation), 0) FROM shard.gateway;

-- name: own_beat
-- Say that a gateway is alive; no row where another process has taken its place.
UPDATE shard.gateway
SET lease_until = clock_timestamp() + $3::double precision * interval '1 second'
WHERE number = $1 AND incarnation = $2
RETURNING number;

-- name: own_leave
-- Say that a gateway has ended, beyond any doubt.
UPDATE shard.gateway SET lease_until = '-infinity' WHERE number = $1 AND incarnation = $2;

-- name: own_serial
-- The last turn of a gateway that was committed; waits for one that is not at its end.
SELECT serial FROM shard.gateway WHERE number = $1 AND incarnation = $2 FOR UPDATE;

-- name: sweep_lock
-- Let no gateway have a turn beside this one: every turn holds its gateway's row.
SELECT number FROM shard.gateway ORDER BY number FOR UPDATE;

-- name: sweep_alone
-- Let no other gateway sweep beside this one. It is the first gateway's row, since that is the one
-- that sweeps: so all others go on.
SELECT number FROM shard.gateway ORDER BY number LIMIT 1 FOR UPDATE;

-- name: identity_get
-- What a shard says of itself.
SELECT key, value FROM shard.meta WHERE key = ANY ($1::text[]);

-- name: identity_set
-- Tell a new shard what it is.
INSERT INTO shard.meta (key, value) VALUES ($1, $2) ON CONFLICT DO NOTHING;

-- name: numbers_last
-- The last number that was given.
SELECT greatest((SELECT max(number) FROM shard.message), (SELECT max(number) FROM shard.batch), 0);

-- name: look
-- What other gateways may have changed: what is queued and what waits, the first of each queue, who
-- has express messages waiting, whether something was left in flight, and which of some messages
-- are final; with the time by which leases can be judged later, $2 being that of an earlier look. A
-- gateway counts as alive whose lease ended no longer than $3 seconds ago. What was left in flight
-- takes a walk over all that is in flight, and is looked for where $4 says so.
SELECT json_build_object(
    'now', extract(epoch FROM statement_timestamp()),
    'backlog', (
        SELECT json_agg(json_build_array(b.route, b.lane, b.messages, b.parts, (
            SELECT min(q.rank) FROM shard.queue AS q WHERE q.route = b.route AND q.lane = b.lane)))
        FROM (SELECT route, lane, sum(messages) AS messages, sum(parts) AS parts
              FROM shard.backlog GROUP BY route, lane HAVING sum(messages) > 0) AS b),
    'first', (SELECT min(number) FROM shard.gateway WHERE lease_until > clock_timestamp()),
    'waits', (SELECT sum(waits) FROM shard.gateway),
    'express', (
        SELECT json_agg(json_build_array(f.client, f.route, f.parts, c.weight))
        FROM shard.flow AS f JOIN shard.client AS c ON c.number = f.client
        WHERE f.lane = 1 AND f.waiting > 0),
    'alive', (SELECT json_agg(number) FROM shard.gateway
              WHERE lease_until > clock_timestamp() - $3::double precision * interval '1 second'),
    'orphans', $4::boolean AND EXISTS (
        SELECT 1 FROM shard.flight WHERE owner <> :own AND owner NOT IN (
            SELECT incarnation FROM shard.gateway
            WHERE lease_until > to_timestamp($2::double precision))),
    'ended', (
        SELECT json_agg(number) FROM shard.message
        WHERE number = ANY ($1::bigint[]) AND status >= 10));

-- name: overdue_end
-- End what gateways have begun here longer ago than a lease, and stand still in. A turn locks its
-- gateway's row before all else, so that by then its lease has not been renewed, and is over. The
-- server ends most of these itself, but not one whose gateway stopped while it was being answered.
SELECT pg_terminate_backend(a.pid)
FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE l.locktype = 'relation' AND l.mode = 'RowShareLock' AND l.granted
  AND l.relation = 'shard.gateway'::regclass AND a.datname = current_database()
  AND a.usename = current_user AND a.pid <> pg_backend_pid()
  AND a.xact_start < clock_timestamp() - $1::double precision * interval '1 second';
