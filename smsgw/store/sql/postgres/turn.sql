-- What a turn loads and writes: two functions, so that it is two calls whatever its size. They are
-- installed under the digest of this file, so that two versions of the program can share a shard.
--
-- Locks come in one order: the gateway's own row, then clients by number. A client's row is the one
-- lock of all that is the client's: its messages, entries, keys, batches, codes and places in queues.
-- So nothing else is locked, and what is read after it stays as it is until the commit. In a
-- function, every statement sees what was committed before that statement.
--
-- A few clients are in nearly every turn of every gateway. A turn waits for the locks of some, before
-- it has any, then takes those that are free and is told who is busy; else the gateways would work
-- one after the other.

-- name: turn_load
-- Lock and read what a turn needs: one JSON document, whose rows are lists.
CREATE FUNCTION shard.turn_load(
    own smallint,
    own_incarnation bigint,
    client_ids bytea[],
    client_numbers bigint[],
    message_numbers bigint[],
    key_clients bytea[],
    key_digests bytea[],
    batch_numbers bigint[],
    code_clients bytea[],
    code_recipients bigint[],
    part_messages bigint[],
    head_routes bigint[],
    head_lanes smallint[],
    head_counts integer[],
    kept_numbers bigint[],
    kept_xids xid[],
    awaited_ids bytea[],
    awaited_numbers bigint[],
    awaited_messages bigint[],
    passes_over boolean
) RETURNS json LANGUAGE plpgsql
-- Rows are few and known by key, also in a table that has grown since it was planned for.
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
SET plan_cache_mode = force_generic_plan
AS $function$
DECLARE
    wanted bigint[];
    candidates bigint[];
    locked bigint[];
    stale bigint[];
    busy bigint[];
    heads json;
BEGIN
    PERFORM FROM shard.gateway WHERE number = own AND incarnation = own_incarnation
    FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'another process has taken the place of gateway %', own
        USING ERRCODE = 'SG001';
    END IF;
    wanted := ARRAY(
        SELECT number FROM shard.client WHERE id = ANY (client_ids)
        UNION SELECT client FROM shard.message WHERE number = ANY (message_numbers)
        UNION SELECT unnest(client_numbers));
    locked := '{}';
    IF passes_over THEN
        IF cardinality(awaited_ids) + cardinality(awaited_numbers) + cardinality(awaited_messages) > 0
        THEN
            locked := ARRAY(
                SELECT number FROM shard.client WHERE number IN (
                    SELECT number FROM shard.client WHERE id = ANY (awaited_ids)
                    UNION SELECT client FROM shard.message WHERE number = ANY (awaited_messages)
                    UNION SELECT unnest(awaited_numbers))
                ORDER BY number FOR NO KEY UPDATE);
        END IF;
        locked := locked || ARRAY(
            SELECT number FROM shard.client
            WHERE number = ANY (wanted) AND number <> ALL (locked)
            ORDER BY number FOR NO KEY UPDATE SKIP LOCKED);
        busy := ARRAY(
            SELECT number FROM shard.client WHERE number = ANY (wanted) AND number <> ALL (locked));
    END IF;
    IF NOT passes_over OR cardinality(locked) = 0 THEN
        busy := NULL;
        locked := ARRAY(
            SELECT number FROM shard.client WHERE number = ANY (wanted)
            ORDER BY number FOR NO KEY UPDATE);
    END IF;

    -- Messages that the gateway remembers need not be sent again, unless somebody has changed them.
    IF cardinality(kept_numbers) > 0 THEN
        stale := ARRAY(
            SELECT k.number FROM unnest(kept_numbers, kept_xids) AS k (number, xid)
            WHERE NOT EXISTS (
                SELECT FROM shard.message AS m WHERE m.number = k.number AND m.xmin = k.xid));
        message_numbers := message_numbers || stale;
    END IF;

    -- Whose messages are first in the queues. Where another gateway is at work for a client, its
    -- places are passed over, unless there is nothing else to do than to wait for them.
    IF cardinality(head_routes) > 0 THEN
        candidates := ARRAY(
            SELECT DISTINCT q.client
            FROM unnest(head_routes, head_lanes, head_counts) AS h (route, lane, most)
            CROSS JOIN LATERAL (
                SELECT client FROM shard.queue WHERE route = h.route AND lane = h.lane
                ORDER BY rank, message LIMIT h.most) AS q);
        wanted := locked || busy;
        locked := locked || ARRAY(
            SELECT number FROM shard.client
            WHERE number = ANY (candidates) AND number <> ALL (wanted)
            ORDER BY number FOR NO KEY UPDATE SKIP LOCKED);
        IF cardinality(locked) = 0 AND cardinality(candidates) > 0 THEN
            locked := ARRAY(
                SELECT number FROM shard.client WHERE number = ANY (candidates)
                ORDER BY number FOR NO KEY UPDATE);
        END IF;
        heads := (
            SELECT json_agg(json_build_array(h.route, h.lane, q.rank, q.message, q.client, q.parts))
            FROM unnest(head_routes, head_lanes, head_counts) AS h (route, lane, most)
            CROSS JOIN LATERAL (
                SELECT * FROM shard.queue WHERE route = h.route AND lane = h.lane
                ORDER BY rank, message LIMIT h.most) AS q
            WHERE q.client = ANY (locked));
        message_numbers := message_numbers
            || ARRAY(SELECT (place->>3)::bigint FROM json_array_elements(heads) AS place);
        -- A long message may have been accepted in part by an earlier attempt.
        part_messages := part_messages
            || ARRAY(SELECT (place->>3)::bigint FROM json_array_elements(heads) AS place
                     WHERE (place->>5)::integer > 1);
    END IF;

    RETURN json_build_object(
        'xid', pg_current_xact_id()::xid::text::bigint,
        'stale', to_json(stale),
        'busy', (
            SELECT json_agg(json_build_array(number, encode(id, 'hex')))
            FROM shard.client WHERE number = ANY (busy)),
        'busy_messages', (
            -- By their numbers: an index finds all messages of a client, of which there are many.
            SELECT json_agg(number) FROM shard.message
            WHERE cardinality(busy) > 0 AND number = ANY (message_numbers)
              AND client + 0 = ANY (busy)),
        'unsafe', (
            SELECT json_agg(name)
            FROM unnest(ARRAY['fsync', 'synchronous_commit', 'full_page_writes']) AS name
            WHERE current_setting(name) = 'off'),
        'accounts', (
            SELECT json_agg(json_build_array(
                number, encode(id, 'hex'), slot, name, weight, created_at_ms, credits_cents,
                held_cents, charged_cents, sequence, waiting, paused))
            FROM shard.client WHERE number = ANY (locked)),
        'messages', (
            SELECT json_agg(json_build_array(
                number, encode(id, 'hex'), client, lane, status, reason, recipient, sender, text,
                ucs2, parts, cost_cents, held_cents, charged_cents, surcharge_cents, reference,
                batch, route, rank, attempts, provider, provider_message_id, last_error, due_at_ms,
                expires_at_ms, submit_by_ms, submitted_at_ms, final_at_ms, updated_at_ms,
                express_missed))
            FROM shard.message WHERE number = ANY (message_numbers)),
        'parts', (
            SELECT json_agg(json_build_array(message, part, provider, status, provider_message_id))
            FROM shard.part WHERE message = ANY (part_messages)),
        'elsewhere', (
            SELECT json_agg(f.message) FROM shard.flight AS f
            JOIN shard.gateway AS g ON g.incarnation = f.owner
            WHERE f.message = ANY (message_numbers) AND f.owner <> own_incarnation
              AND g.lease_until > clock_timestamp()),
        'keys', (
            SELECT json_agg(json_build_array(
                i.client, encode(i.digest, 'hex'), encode(i.fingerprint, 'hex'), i.subject,
                i.answer, i.credits_cents, i.created_at_ms))
            FROM unnest(key_clients, key_digests) AS k (id, digest)
            JOIN shard.client AS c ON c.id = k.id
            -- The limit has it looked up by the whole key: by the client alone, it finds many.
            CROSS JOIN LATERAL (
                SELECT * FROM shard.idempotency WHERE client = c.number AND digest = k.digest
                LIMIT 1) AS i),
        'batches', (
            SELECT json_agg(json_build_array(
                number, encode(id, 'hex'), client, size, done, accepted, rejections, credits_cents))
            FROM shard.batch WHERE number = ANY (batch_numbers)),
        'codes', (
            SELECT json_agg(json_build_array(
                n.message, n.client, n.recipient, encode(n.id, 'hex'), n.expires_at_ms, n.tries,
                n.used_at_ms, n.live))
            FROM unnest(code_clients, code_recipients) AS k (id, recipient)
            JOIN shard.client AS c ON c.id = k.id
            CROSS JOIN LATERAL (
                SELECT * FROM shard.code WHERE client = c.number AND recipient = k.recipient
                ORDER BY message DESC LIMIT 1) AS n),
        'heads', heads,
        'flows', (
            SELECT json_agg(json_build_array(
                client, route, lane, next_rank, waiting, parts, again_rank, served_rank))
            FROM shard.flow WHERE client = ANY (locked)),
        'backlog', (
            SELECT json_agg(json_build_array(route, lane, messages, parts)) FROM (
                SELECT route, lane, sum(messages) AS messages, sum(parts) AS parts
                FROM shard.backlog GROUP BY route, lane) AS sums),
        'waits', (SELECT sum(waits) FROM shard.gateway),
        'next_client', (SELECT coalesce(max(number), 0) + 1 FROM shard.client),
        'counted_to', (SELECT value FROM shard.meta WHERE key = 'counted_to'),
        'floor', (SELECT max(value) FROM shard.meta WHERE key LIKE '%\_to'));
END
$function$;

-- name: turn_write
-- Write what a turn changed; every statement costs something even where it finds nothing to do. What
-- there is most of comes as rows of numbers laid end to end: from JSON, that takes half as long again.
CREATE FUNCTION shard.turn_write(
    turn jsonb, accounts bigint[], entries bigint[], landed bigint[], flying bigint[], flows bigint[]
) RETURNS void LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
SET plan_cache_mode = force_generic_plan
AS $function$
DECLARE
    own CONSTANT smallint := (turn->>'gateway')::smallint;
    own_incarnation CONSTANT bigint := (turn->>'incarnation')::bigint;
    changed bigint;
BEGIN
    UPDATE shard.gateway SET
        serial = (turn->>'serial')::bigint, waits = waits + (turn->>'waits')::bigint,
        lease_until = clock_timestamp() + (turn->>'lease_s')::double precision * interval '1 second'
    WHERE number = own AND incarnation = own_incarnation;

    IF turn ? 'add_clients' THEN
        INSERT INTO shard.client
        SELECT (v->>0)::bigint, decode(v->>1, 'hex'), (v->>2)::integer, v->>3, (v->>4)::integer,
               (v->>5)::bigint, (v->>6)::bigint, (v->>7)::bigint, (v->>8)::bigint, (v->>9)::bigint,
               (v->>10)::bigint, (v->>11)::smallint
        FROM jsonb_array_elements(turn->'add_clients') AS v;
    END IF;
    IF cardinality(accounts) > 0 THEN
        UPDATE shard.client AS c SET
            weight = accounts[i + 1], credits_cents = accounts[i + 2], held_cents = accounts[i + 3],
            charged_cents = accounts[i + 4], sequence = accounts[i + 5], waiting = accounts[i + 6],
            paused = accounts[i + 7]
        FROM generate_series(1, cardinality(accounts), 8) AS i WHERE c.number = accounts[i];
        -- Whatever is added below belongs to one of them, or to a new client.
        GET DIAGNOSTICS changed = ROW_COUNT;
        IF changed * 8 <> cardinality(accounts) THEN
            RAISE EXCEPTION 'an account of nobody' USING ERRCODE = 'foreign_key_violation';
        END IF;
    END IF;
    IF turn ? 'add_messages' THEN
        INSERT INTO shard.message
        SELECT (v->>0)::bigint, decode(v->>1, 'hex'), (v->>2)::bigint, (v->>3)::smallint,
               (v->>4)::smallint, v->>5, (v->>6)::bigint, v->>7, v->>8, (v->>9)::smallint,
               (v->>10)::integer, (v->>11)::bigint, (v->>12)::bigint, (v->>13)::bigint,
               (v->>14)::bigint, v->>15, (v->>16)::bigint, (v->>17)::bigint, (v->>18)::bigint,
               (v->>19)::integer, v->>20, v->>21, v->>22, (v->>23)::bigint, (v->>24)::bigint,
               (v->>25)::bigint, (v->>26)::bigint, (v->>27)::bigint, (v->>28)::bigint,
               (v->>29)::smallint
        FROM jsonb_array_elements(turn->'add_messages') AS v;
    END IF;
    IF turn ? 'change_messages' THEN
        UPDATE shard.message AS m SET
            status = (v->>1)::smallint, reason = v->>2, held_cents = (v->>3)::bigint,
            charged_cents = (v->>4)::bigint, route = (v->>5)::bigint, rank = (v->>6)::bigint,
            attempts = (v->>7)::integer, provider = v->>8, provider_message_id = v->>9,
            last_error = v->>10, due_at_ms = (v->>11)::bigint, submitted_at_ms = (v->>12)::bigint,
            final_at_ms = (v->>13)::bigint, updated_at_ms = (v->>14)::bigint,
            express_missed = (v->>15)::smallint
        FROM jsonb_array_elements(turn->'change_messages') AS v
        WHERE m.number = (v->>0)::bigint AND m.status < 10;
    END IF;
    IF cardinality(landed) > 0 THEN
        DELETE FROM shard.flight WHERE message = ANY (landed);
    END IF;
    IF cardinality(flying) > 0 THEN
        INSERT INTO shard.flight AS f
        SELECT flying[i], CASE flying[i + 1] WHEN 2 THEN own_incarnation END, flying[i + 2]
        FROM generate_series(1, cardinality(flying), 3) AS i
        ON CONFLICT (message) DO UPDATE SET
            owner = CASE WHEN excluded.owner IS NOT NULL THEN coalesce(f.owner, excluded.owner) END,
            attempt = excluded.attempt;
    END IF;
    IF turn ? 'add_entries' THEN
        INSERT INTO shard.entry
        SELECT (v->>0)::bigint, (v->>1)::bigint, (v->>2)::smallint, (v->>3)::bigint, (v->>4)::bigint,
               (v->>5)::bigint, (v->>6)::bigint, (v->>7)::bigint, v->>8
        FROM jsonb_array_elements(turn->'add_entries') AS v;
    END IF;
    IF cardinality(entries) > 0 THEN
        INSERT INTO shard.entry
        SELECT entries[i], entries[i + 1], entries[i + 2], entries[i + 3], entries[i + 4],
               entries[i + 5], entries[i + 6], entries[i + 7], NULL
        FROM generate_series(1, cardinality(entries), 8) AS i;
    END IF;
    IF turn ? 'set_keys' THEN
        INSERT INTO shard.idempotency (
            client, digest, fingerprint, subject, answer, credits_cents, created_at_ms, generation)
        SELECT (v->>0)::bigint, decode(v->>1, 'hex'), decode(v->>2, 'hex'), (v->>3)::bigint,
               (v->>4)::smallint, (v->>5)::bigint, (v->>6)::bigint, (v->>7)::bigint
        FROM jsonb_array_elements(turn->'set_keys') AS v
        ON CONFLICT (client, digest) DO UPDATE SET
            fingerprint = excluded.fingerprint, subject = excluded.subject, answer = excluded.answer,
            credits_cents = excluded.credits_cents, created_at_ms = excluded.created_at_ms,
            generation = excluded.generation;
    END IF;
    IF turn ? 'set_batches' THEN
        INSERT INTO shard.batch
        SELECT (v->>0)::bigint, decode(v->>1, 'hex'), (v->>2)::bigint, (v->>3)::integer,
               (v->>4)::integer, (v->>5)::integer, v->>6, (v->>7)::bigint
        FROM jsonb_array_elements(turn->'set_batches') AS v
        ON CONFLICT (number) DO UPDATE SET
            done = excluded.done, accepted = excluded.accepted, rejections = excluded.rejections,
            credits_cents = excluded.credits_cents;
    END IF;
    IF turn ? 'set_codes' THEN
        INSERT INTO shard.code (message, client, recipient, id, expires_at_ms, tries, used_at_ms, live)
        SELECT (v->>0)::bigint, (v->>1)::bigint, (v->>2)::bigint, decode(v->>3, 'hex'),
               (v->>4)::bigint, (v->>5)::integer, (v->>6)::bigint, (v->>7)::smallint
        FROM jsonb_array_elements(turn->'set_codes') AS v
        ON CONFLICT (client, recipient, message) DO UPDATE SET
            tries = excluded.tries, used_at_ms = excluded.used_at_ms, live = excluded.live;
    END IF;
    IF turn ? 'set_parts' THEN
        INSERT INTO shard.part
        SELECT (v->>0)::bigint, (v->>1)::integer, v->>2, (v->>3)::smallint, v->>4
        FROM jsonb_array_elements(turn->'set_parts') AS v
        ON CONFLICT (message, part) DO UPDATE SET status = excluded.status;
    END IF;
    IF turn ? 'dequeue' THEN
        DELETE FROM shard.queue AS q USING jsonb_array_elements(turn->'dequeue') AS v
        WHERE q.route = (v->>0)::bigint AND q.lane = (v->>1)::smallint AND q.rank = (v->>2)::bigint
          AND q.message = (v->>3)::bigint;
    END IF;
    IF turn ? 'enqueue' THEN
        INSERT INTO shard.queue
        SELECT (v->>0)::bigint, (v->>1)::smallint, (v->>2)::bigint, (v->>3)::bigint, (v->>4)::bigint,
               (v->>5)::integer
        FROM jsonb_array_elements(turn->'enqueue') AS v;
    END IF;
    IF cardinality(flows) > 0 THEN
        INSERT INTO shard.flow
        SELECT flows[i], flows[i + 1], flows[i + 2], flows[i + 3], flows[i + 4], flows[i + 5],
               flows[i + 6], flows[i + 7]
        FROM generate_series(1, cardinality(flows), 8) AS i
        ON CONFLICT (client, route, lane) DO UPDATE SET
            next_rank = excluded.next_rank, waiting = excluded.waiting, parts = excluded.parts,
            again_rank = excluded.again_rank, served_rank = excluded.served_rank;
    END IF;
    IF turn ? 'add_backlog' THEN
        INSERT INTO shard.backlog AS b
        SELECT own, (v->>0)::bigint, (v->>1)::smallint, (v->>2)::bigint, (v->>3)::bigint
        FROM jsonb_array_elements(turn->'add_backlog') AS v
        ON CONFLICT (gateway, route, lane) DO UPDATE SET
            messages = b.messages + excluded.messages, parts = b.parts + excluded.parts;
    END IF;
    IF turn ? 'add_timers' THEN
        INSERT INTO shard.timer
        SELECT (v->>0)::bigint, (v->>1)::bigint, (v->>2)::smallint
        FROM jsonb_array_elements(turn->'add_timers') AS v ON CONFLICT DO NOTHING;
    END IF;
    IF turn ? 'add_totals' THEN
        INSERT INTO shard.total AS t
        SELECT (v->>0)::bigint, (v->>1)::bigint, v->>2, (v->>3)::smallint, (v->>4)::bigint,
               (v->>5)::bigint, (v->>6)::bigint, (v->>7)::bigint, (v->>8)::bigint
        FROM jsonb_array_elements(turn->'add_totals') AS v
        ON CONFLICT (client, day, sender, status) DO UPDATE SET
            messages = t.messages + excluded.messages, parts = t.parts + excluded.parts,
            cost_cents = t.cost_cents + excluded.cost_cents,
            held_cents = t.held_cents + excluded.held_cents,
            charged_cents = t.charged_cents + excluded.charged_cents;
    END IF;
    IF turn ? 'event_add' THEN
        INSERT INTO shard.event (message, at_ms, kind, detail)
        SELECT (v->>0)::bigint, (v->>1)::bigint, v->>2, v->>3
        FROM jsonb_array_elements(turn->'event_add') AS v;
    END IF;
    IF turn ? 'timer_delete' THEN
        DELETE FROM shard.timer AS t USING jsonb_array_elements(turn->'timer_delete') AS v
        WHERE t.due_at_ms = (v->>0)::bigint AND t.message = (v->>1)::bigint
          AND t.kind = (v->>2)::smallint;
    END IF;
END
$function$;
