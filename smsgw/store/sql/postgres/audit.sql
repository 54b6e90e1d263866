-- What must be true of a shard between any two turns. Each statement finds what is not: rows of
-- (client number, sentence). All of them run in one read transaction.

-- name: chain
-- Every entry's balance is the one before it plus its amount, and no sequence number is missing.
SELECT client, 'entry ' || sequence || ' breaks the chain of balances' FROM (
    SELECT client, sequence, kind, amount_cents, balance_cents,
           lag(balance_cents) OVER one AS balance_before, lag(sequence) OVER one AS sequence_before
    FROM shard.entry WINDOW one AS (PARTITION BY client ORDER BY sequence)) AS chained
WHERE balance_cents <> coalesce(balance_before, 0) + amount_cents
   OR (sequence_before IS NULL AND kind <> 5 AND sequence <> 1)
   OR (sequence_before IS NOT NULL AND (sequence <> sequence_before + 1 OR kind = 5));

-- name: sums
-- The entries of every client add up to its account.
SELECT c.number,
       'credits ' || c.credits_cents || ' and held ' || c.held_cents || ' at entry ' || c.sequence
       || ', but the ledger says ' || coalesce(e.credits, 0) || ' and ' || coalesce(e.held, 0)
       || ' at entry ' || coalesce(e.sequence, 0)
FROM shard.client AS c LEFT JOIN (
    SELECT client, sum(amount_cents) AS credits, sum(held_cents) AS held, max(sequence) AS sequence
    FROM shard.entry GROUP BY client) AS e ON e.client = c.number
WHERE c.credits_cents <> coalesce(e.credits, 0) OR c.held_cents <> coalesce(e.held, 0)
   OR c.sequence <> coalesce(e.sequence, 0);

-- name: charges
-- What was captured in all is what the captures say, and the notes of those carried forward.
SELECT c.number,
       'charged ' || c.charged_cents || ', but the captures add up to ' || coalesce(e.charged, 0)
FROM shard.client AS c LEFT JOIN (
    SELECT client, sum(CASE kind WHEN 3 THEN -held_cents
                       WHEN 5 THEN split_part(note, ' ', 2)::bigint ELSE 0 END) AS charged
    FROM shard.entry GROUP BY client) AS e ON e.client = c.number
WHERE c.charged_cents <> coalesce(e.charged, 0);

-- name: strangers
-- Every entry and every message belongs to a client.
SELECT DISTINCT e.client, 'entries of a client that is not there' FROM shard.entry AS e
WHERE NOT EXISTS (SELECT FROM shard.client AS c WHERE c.number = e.client)
UNION ALL
SELECT DISTINCT m.client, 'messages of a client that is not there' FROM shard.message AS m
WHERE NOT EXISTS (SELECT FROM shard.client AS c WHERE c.number = m.client);

-- name: holds
-- Every stored message's entries say what the message says: held, charged, and the rest released.
SELECT m.client,
       'message ' || encode(m.id, 'hex') || ' (held ' || m.held_cents || ', charged '
       || m.charged_cents || ' of ' || m.cost_cents || ') differs from its entries'
FROM shard.message AS m LEFT JOIN (
    SELECT message, min(client) AS client, max(client) AS last_client, sum(held_cents) AS held,
           count(*) FILTER (WHERE kind = 2) AS holds,
           coalesce(sum(held_cents) FILTER (WHERE kind = 2), 0) AS cost,
           coalesce(-sum(held_cents) FILTER (WHERE kind = 3), 0) AS charged,
           count(*) FILTER (WHERE kind = 3) AS captures,
           count(*) FILTER (WHERE kind = 4) AS releases
    FROM shard.entry WHERE message IS NOT NULL GROUP BY message) AS e ON e.message = m.number
WHERE e.message IS NULL OR e.client <> m.client OR e.last_client <> m.client OR e.holds <> 1
   OR e.cost <> m.cost_cents OR e.held <> m.held_cents OR e.charged <> m.charged_cents
   OR e.captures > 1 OR e.releases > 1 OR (m.status >= 10 AND e.held <> 0);

-- name: orphans
-- No entry speaks of a message that never was: one that is gone was finished, and is held no more.
SELECT min(e.client), 'entries of a message that is gone still hold ' || sum(e.held_cents)
FROM shard.entry AS e LEFT JOIN shard.message AS m ON m.number = e.message
WHERE e.message IS NOT NULL AND m.number IS NULL
  AND NOT EXISTS (SELECT FROM shard.entry AS o WHERE o.client = e.client AND o.kind = 5)
GROUP BY e.message HAVING sum(e.held_cents) <> 0;

-- name: accounts
-- What messages hold, and how many wait, is what their clients' accounts say.
SELECT c.number,
       'held ' || c.held_cents || ' with ' || c.waiting || ' waiting, but the messages say '
       || coalesce(m.held, 0) || ' with ' || coalesce(m.waiting, 0)
FROM shard.client AS c LEFT JOIN (
    SELECT client, sum(held_cents) AS held,
           count(*) FILTER (WHERE status IN (0, 1, 5)) AS waiting
    FROM shard.message GROUP BY client) AS m ON m.client = c.number
WHERE c.held_cents <> coalesce(m.held, 0) OR c.waiting <> coalesce(m.waiting, 0);

-- name: queued
-- Every queued message has its place.
SELECT m.client, 'message ' || encode(m.id, 'hex') || ' is QUEUED but in no queue'
FROM shard.message AS m
WHERE m.status = 1 AND NOT EXISTS (
    SELECT 1 FROM shard.queue AS q
    WHERE q.route = m.route AND q.lane = m.lane AND q.rank = m.rank AND q.message = m.number);

-- name: places
-- Every place in a queue has its queued message.
SELECT q.client, 'a place in a queue without its message' FROM shard.queue AS q
LEFT JOIN shard.message AS m ON m.number = q.message
WHERE m.number IS NULL OR m.status <> 1 OR m.client <> q.client OR m.parts <> q.parts
   OR m.route <> q.route OR m.lane <> q.lane OR m.rank <> q.rank;

-- name: flows
-- Every client's places in queues are counted.
SELECT coalesce(f.client, q.client), 'the count of its places in a queue is wrong'
FROM (SELECT * FROM shard.flow WHERE waiting <> 0 OR parts <> 0) AS f FULL JOIN (
    SELECT client, route, lane, count(*) AS waiting, sum(parts) AS parts
    FROM shard.queue GROUP BY client, route, lane) AS q
ON q.client = f.client AND q.route = f.route AND q.lane = f.lane
WHERE f.waiting IS DISTINCT FROM q.waiting OR f.parts IS DISTINCT FROM q.parts;

-- name: backlog
-- What the gateways have counted adds up to what is queued, and to what waits.
SELECT NULL::bigint, 'the count of what is queued is wrong' FROM (
    SELECT route, lane, sum(messages) AS messages, sum(parts) AS parts
    FROM shard.backlog GROUP BY route, lane
    HAVING sum(messages) <> 0 OR sum(parts) <> 0) AS b FULL JOIN (
    SELECT route, lane, count(*) AS messages, sum(parts) AS parts
    FROM shard.queue GROUP BY route, lane) AS q ON q.route = b.route AND q.lane = b.lane
WHERE b.messages IS DISTINCT FROM q.messages OR b.parts IS DISTINCT FROM q.parts
UNION ALL
SELECT NULL, 'the count of what waits is wrong'
WHERE (SELECT coalesce(sum(waits), 0) FROM shard.gateway)
   <> (SELECT coalesce(sum(waiting), 0) FROM shard.client);

-- name: flights
-- What is being sent, and what is uncertain, is noted as that.
SELECT m.client, 'message ' || encode(m.id, 'hex') || ' is not noted as what it is'
FROM shard.message AS m FULL JOIN shard.flight AS f ON f.message = m.number
WHERE CASE WHEN m.number IS NULL OR m.status NOT IN (2, 4) THEN f.message IS NOT NULL
      ELSE f.message IS NULL OR (m.status = 2) <> (f.owner IS NOT NULL) END;

-- name: timers
-- What waits for a time will be looked at then.
SELECT m.client, 'message ' || encode(m.id, 'hex') || ' waits for a time that never comes'
FROM shard.message AS m
WHERE m.status IN (0, 5) AND NOT EXISTS (
    SELECT 1 FROM shard.timer AS t
    WHERE t.due_at_ms = m.due_at_ms AND t.message = m.number AND t.kind = 0);

-- name: totals
-- The daily totals count every message once, as it is; those of a purged day outlive its messages,
-- also where a client has come from another shard, which purged that day.
WITH purged AS (
    SELECT CASE value WHEN 0 THEN 0 ELSE ((value >> 22) + 1735689600000) / 86400000 END AS day
    FROM (SELECT max(value) AS value FROM shard.meta
          WHERE key IN ('purged_to', 'outlived_to')) AS marks),
told AS (
    SELECT client, day, sender, status, messages, parts, cost_cents, held_cents, charged_cents
    FROM shard.total WHERE day > (SELECT day FROM purged)
    AND (messages, parts, cost_cents, held_cents, charged_cents) <> (0, 0, 0, 0, 0)),
counted AS (
    SELECT client, ((number >> 22) + 1735689600000) / 86400000 AS day, sender, status,
           count(*) AS messages, sum(parts) AS parts, sum(cost_cents) AS cost_cents,
           sum(held_cents) AS held_cents, sum(charged_cents) AS charged_cents
    FROM shard.message WHERE number <= (SELECT value FROM shard.meta WHERE key = 'counted_to')
    GROUP BY 1, 2, 3, 4)
SELECT DISTINCT client, 'daily totals differ from the messages' FROM (
    SELECT * FROM (SELECT * FROM told EXCEPT
                   SELECT * FROM counted WHERE day > (SELECT day FROM purged)) AS more
    UNION ALL
    SELECT * FROM (SELECT * FROM counted WHERE day > (SELECT day FROM purged)
                   EXCEPT SELECT * FROM told) AS less) AS differences;

-- name: proof_sums
-- What the audit has added up; not a check.
SELECT (SELECT count(*) FROM shard.client), (SELECT count(*) FROM shard.message),
       (SELECT count(*) FROM shard.entry), coalesce(sum(credits_cents), 0)::bigint,
       coalesce(sum(held_cents), 0)::bigint, coalesce(sum(charged_cents), 0)::bigint
FROM shard.client;

-- name: proof_client
-- Whose finding it is; not a check.
SELECT id FROM shard.client WHERE number = $1;
