-- Ownership of keys inside a data home: the proof that an older epoch can no longer write a range.
--
-- Run as the database's administrator, in one transaction, as often as wanted: it changes nothing that is
-- already so. Services may call titan.guard, titan.reopen and titan.protect; only the administrator fences,
-- activates, splits, merges and removes.
--
-- How a write is never lost:
--   * A writer takes a shared advisory lock on each key that it writes, and only then reads the row of the key.
--     The lock's identity is the key, so no split, merge or move of rows can make a fence look at another lock.
--   * A fence first commits that the rows are `closing` (newcomers are refused), then reads from pg_locks which
--     keys of the range are registered, and polls those locks. It never waits in a lock's queue, so nobody waits
--     behind it. Within its budget it either finds every lock free once, and the rows become `fenced`, or gives
--     up, and the rows become what they were.
--   * PostgreSQL releases a transaction's locks after its commit is visible. So a key whose lock is free has no
--     writer whose commit is still to come.
--   Times (closing_until, rest_until) only decide who may try again when; no write depends on a clock.
--
-- SQLSTATEs:
--   TC001  the key is not owned here, by this cell, at this epoch (DETAIL is JSON)
--   TC002  a write to a protected table whose transaction has not passed titan.guard for that owner
--   TC003  a function was used wrongly (isolation level, missing arguments, more than 256 owners)
--   TC004  a change of ownership carries an epoch that is too old, or no fence came before it
--   TC005  a fence of this range is under way: try again
--
-- Advisory locks: negative bigints are the keys of titan.guard (-1 - key) and nobody else's; (x'7469746e', -1) is
-- held to run this file, (x'7469746e', -2) to change rows.

SELECT pg_advisory_xact_lock(x'7469746e'::int, -1);

CREATE SCHEMA IF NOT EXISTS titan;

-- Never ALTER, VACUUM FULL, REINDEX or CLUSTER this table: that waits for every open writer, and everybody queues
-- behind it. Another layout is another table, filled in the transaction that replaces the functions.
CREATE TABLE IF NOT EXISTS titan.ranges (
    range_first   bigint PRIMARY KEY CHECK (range_first >= 0),
    range_last    bigint NOT NULL,
    cell          text NOT NULL,
    epoch         bigint NOT NULL CHECK (epoch >= 0),
    state         text NOT NULL CHECK (state IN ('active', 'closing', 'fenced')),
    -- The fence that closed the row, what the row becomes when that fence gives up, and when anybody may say so.
    attempt       bigint,
    reopen_as     text CHECK (reopen_as IN ('active', 'fenced', 'absent')),
    closing_until timestamptz,
    -- No other fence before that: a range is open for at least as long as it was closed.
    rest_until    timestamptz,
    CHECK (range_first <= range_last),
    CHECK ((state = 'closing') = (attempt IS NOT NULL)),
    CHECK ((attempt IS NULL) = (reopen_as IS NULL)),
    CHECK ((attempt IS NULL) = (closing_until IS NULL)),
    -- numrange, for int8range would need last + 1, which the largest key does not have.
    CONSTRAINT ranges_no_overlap
        EXCLUDE USING gist (numrange(range_first::numeric, range_last::numeric, '[]') WITH &&)
);
COMMENT ON TABLE titan.ranges IS
    'Which ranges of keys may be written in this data home, by which cell, since which epoch';

-- Which fence closed a row. Numbers are never used twice, so a row that was reopened and closed again is another's.
CREATE SEQUENCE IF NOT EXISTS titan.attempts AS bigint;

-- The release before kept its rows in titan.ownership, and its guard took a lock on the row (x'7469746e', hash).
-- Its rows are copied, and one row that fences everything stays in their place: a call of the old guard that has
-- not read its row yet then refuses. Those that passed already are seen by titan.old_writers. Remove all that is
-- called old in the release after this one.
DO $$
BEGIN
    IF to_regclass('titan.ownership') IS NULL THEN
        RETURN;
    END IF;
    -- Readers, which is what open writers are, do not conflict with it.
    LOCK TABLE titan.ownership IN EXCLUSIVE MODE;
    INSERT INTO titan.ranges (range_first, range_last, cell, epoch, state)
    SELECT o.range_first, o.range_last, o.cell, o.epoch, o.state FROM titan.ownership o
     WHERE o.epoch < 9223372036854775807;
    DELETE FROM titan.ownership o WHERE o.epoch < 9223372036854775807;
    INSERT INTO titan.ownership (range_first, range_last, cell, epoch, state)
    VALUES (0, 9223372036854775807, '', 9223372036854775807, 'fenced')
    ON CONFLICT DO NOTHING;
END
$$;
DROP FUNCTION IF EXISTS titan.fence(bigint, bigint, bigint), titan.guarded_ranges();
-- It returned nothing before. That its type is another now also keeps the file of the release before, which an
-- operator that was rolled back would run, from taking effect in part or in whole.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_proc p WHERE p.oid = to_regprocedure('titan.activate(bigint, bigint, text, bigint)')
                                       AND p.prorettype = 'void'::regtype) THEN
        DROP FUNCTION titan.activate(bigint, bigint, text, bigint);
    END IF;
END
$$;

-- Sessions that passed the guard of the release before, and that have not ended their transaction.
CREATE OR REPLACE FUNCTION titan.old_writers() RETURNS TABLE (pid int)
LANGUAGE sql VOLATILE AS $$
    SELECT l.pid FROM pg_locks l
     WHERE l.locktype = 'advisory' AND l.objsubid = 2 AND l.classid = x'7469746e'::int::oid AND l.mode = 'ShareLock'
       AND l.granted AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
$$;

-- Every transaction that writes rows of an owner calls this first, once an owner. It registers the owner until the
-- transaction ends, and reads the row of the owner after that, so it sees a fence that did not see it.
--
-- An epoch older than the row's is refused. A newer one is not: the row is authoritative, and a change of the
-- routing table that concerns this data home always passes through titan.fence or titan.activate.
--
-- The setting titan.guarded_owners is `<xid>/ <owner> <owner> `. It names the transaction, so that a value left over
-- in a session, however it got there, is worth nothing to the next transaction.
CREATE OR REPLACE FUNCTION titan.guard(owner bigint, cell text, epoch bigint) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE AS $$
DECLARE
    noted text := current_setting('titan.guarded_owners', true);
    held titan.ranges;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        -- Under a transaction snapshot the look at the row could not see a fence that has just committed.
        RAISE EXCEPTION USING ERRCODE = 'TC003',
            MESSAGE = format('titan.guard needs isolation level READ COMMITTED, this transaction has %s',
                             upper(current_setting('transaction_isolation'))),
            HINT = 'Begin the transaction with BEGIN ISOLATION LEVEL READ COMMITTED.';
    END IF;
    IF owner IS NULL OR guard.cell IS NULL OR guard.epoch IS NULL OR owner < 0 THEN
        RAISE EXCEPTION USING ERRCODE = 'TC003', MESSAGE = 'titan.guard needs an owner from 0 up, a cell and an epoch';
    END IF;
    IF noted <> '' AND starts_with(noted, pg_current_xact_id_if_assigned()::text || '/') THEN
        IF strpos(noted, ' ' || owner || ' ') > 0 THEN
            RETURN; -- It is still registered, so no fence has finished since.
        END IF;
        IF cardinality(string_to_array(noted, ' ')) > 257 THEN
            -- Each owner takes a place in the lock table, which all sessions of the server share.
            RAISE EXCEPTION USING ERRCODE = 'TC003',
                MESSAGE = 'a transaction may write the rows of 256 owners at most',
                HINT = 'Commit, and write the rest in another transaction.';
        END IF;
    ELSE
        noted := NULL;
    END IF;

    /* failpoint before_lock */
    PERFORM pg_advisory_xact_lock_shared(-1 - owner);
    /* failpoint after_lock */
    -- A new statement, hence a new snapshot: whatever was committed before the lock was granted is seen.
    SELECT r.* INTO held FROM titan.ranges r WHERE r.range_first <= owner ORDER BY r.range_first DESC LIMIT 1;
    /* failpoint after_read */

    IF held.range_last >= owner AND held.state = 'active' AND held.cell = guard.cell AND held.epoch <= guard.epoch THEN
        PERFORM set_config('titan.guarded_owners',
            coalesce(noted, pg_current_xact_id()::text || '/ ') || owner || ' ', true);
        RETURN;
    END IF;
    IF held.range_last IS NULL OR held.range_last < owner OR held.reopen_as = 'absent' THEN
        RAISE EXCEPTION USING ERRCODE = 'TC001',
            MESSAGE = format('key %s lies in no range of this data home', owner),
            DETAIL = json_build_object('owner', owner, 'reason', 'unknown')::text;
    END IF;
    RAISE EXCEPTION USING ERRCODE = 'TC001',
        MESSAGE = format('key %s is not owned by cell %s at epoch %s: range %s..=%s is %s for cell %s since epoch %s',
                         owner, guard.cell, guard.epoch, held.range_first, held.range_last,
                         held.state, held.cell, held.epoch),
        DETAIL = json_build_object(
            'owner', owner,
            'reason', CASE WHEN 'fenced' IN (held.state, held.reopen_as) THEN 'fenced'
                           WHEN held.cell <> guard.cell THEN 'moved'
                           WHEN held.epoch > guard.epoch THEN 'stale'
                           ELSE 'closing' END,
            'range_first', held.range_first, 'range_last', held.range_last,
            'cell', held.cell, 'epoch', held.epoch, 'state', held.state,
            'attempt', held.attempt, 'overdue', held.closing_until < clock_timestamp())::text;
END
$$;

-- The trigger of protected tables. It does not fire for rows that logical replication applies.
CREATE OR REPLACE FUNCTION titan.refuse_unguarded() RETURNS trigger
LANGUAGE plpgsql AS $$
DECLARE
    noted text := current_setting('titan.guarded_owners', true);
    old_note text;
    stranger bigint;
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        RAISE EXCEPTION USING ERRCODE = 'TC002',
            MESSAGE = format('TRUNCATE of %I.%I is refused: it would take rows of every owner',
                             TG_TABLE_SCHEMA, TG_TABLE_NAME),
            HINT = 'DELETE the rows of one owner in a transaction that has passed titan.guard.';
    END IF;
    IF noted = '' OR starts_with(noted, pg_current_xact_id_if_assigned()::text || '/') IS NOT TRUE THEN
        noted := '';
    END IF;
    IF TG_OP <> 'INSERT' AND strpos(noted, ' ' || OLD.owner_id || ' ') = 0 THEN
        stranger := OLD.owner_id;
    ELSIF TG_OP <> 'DELETE' AND strpos(noted, ' ' || NEW.owner_id || ' ') = 0 THEN
        stranger := NEW.owner_id;
    END IF;
    IF stranger IS NOT NULL THEN
        -- Or the transaction passed the guard of the release before, which noted ranges.
        old_note := current_setting('titan.guarded', true);
        IF old_note <> '' AND split_part(old_note, ' ', 1) = pg_current_xact_id_if_assigned()::text
           AND (TG_OP = 'INSERT' OR split_part(old_note, ' ', 2)::nummultirange @> OLD.owner_id::numeric)
           AND (TG_OP = 'DELETE' OR split_part(old_note, ' ', 2)::nummultirange @> NEW.owner_id::numeric) THEN
            stranger := NULL;
        END IF;
    END IF;
    IF stranger IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'TC002',
            MESSAGE = format('%s of a row of owner %s in %I.%I without the guard',
                             TG_OP, stranger, TG_TABLE_SCHEMA, TG_TABLE_NAME),
            HINT = 'Call titan.guard(owner, cell, epoch) first, in the same transaction, for this very owner.';
    END IF;
    IF TG_OP = 'DELETE' THEN
        RETURN OLD;
    END IF;
    RETURN NEW;
END
$$;

-- Called by migrations for every table that moves with its owner.
CREATE OR REPLACE FUNCTION titan.protect(protected regclass) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_index i
          JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
         WHERE i.indrelid = protected AND i.indisprimary
           AND a.attname = 'owner_id' AND a.atttypid = 'bigint'::regtype) THEN
        RAISE EXCEPTION USING ERRCODE = 'TC003',
            MESSAGE = format('%s cannot be protected: its primary key does not start with owner_id bigint', protected),
            HINT = 'Tables that move with their owner have PRIMARY KEY (owner_id, id).';
    END IF;
    EXECUTE format('CREATE OR REPLACE TRIGGER titan_guard BEFORE INSERT OR UPDATE OR DELETE ON %s '
                   'FOR EACH ROW EXECUTE FUNCTION titan.refuse_unguarded()', protected);
    EXECUTE format('CREATE OR REPLACE TRIGGER titan_no_truncate BEFORE TRUNCATE ON %s '
                   'FOR EACH STATEMENT EXECUTE FUNCTION titan.refuse_unguarded()', protected);
END
$$;

-- Who is registered for keys of a range. A prepared transaction has no pid.
CREATE OR REPLACE FUNCTION titan.writers(first bigint, last bigint) RETURNS TABLE (pid int, key bigint)
LANGUAGE sql VOLATILE AS $$
    SELECT l.pid, -1 - ((l.classid::bigint << 32) | l.objid::bigint)
      FROM pg_locks l
     WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.mode = 'ShareLock' AND l.granted
       AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
       AND ((l.classid::bigint << 32) | l.objid::bigint) BETWEEN -1 - last AND -1 - first
$$;

-- Ends an attempt that does not become a fence: its rows are what they were. It never waits: rows that somebody
-- works on are left to him. Returns whether there were any.
CREATE OR REPLACE FUNCTION titan.give_up(given_up bigint, overdue_only boolean) RETURNS boolean
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    mine bigint[];
BEGIN
    SELECT array_agg(locked.range_first) INTO mine FROM (
        SELECT r.range_first FROM titan.ranges r
         WHERE r.attempt = given_up AND (NOT overdue_only OR r.closing_until < clock_timestamp())
           FOR UPDATE SKIP LOCKED) locked;
    DELETE FROM titan.ranges r WHERE r.range_first = ANY (mine) AND r.reopen_as = 'absent';
    UPDATE titan.ranges r SET state = r.reopen_as, attempt = NULL, reopen_as = NULL, closing_until = NULL
     WHERE r.range_first = ANY (mine);
    RETURN mine IS NOT NULL;
END
$$;

-- Opens a range again whose fence is overdue, because its session ended. Every service may call it, in a transaction
-- of its own. It and the fence's last step change the same rows, so at most one of the two takes effect.
CREATE OR REPLACE FUNCTION titan.reopen(owner bigint) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    left_behind bigint;
BEGIN
    SELECT r.attempt INTO left_behind FROM titan.ranges r
     WHERE r.range_first <= owner AND r.range_last >= owner AND r.closing_until < clock_timestamp();
    RETURN left_behind IS NOT NULL AND titan.give_up(left_behind, true);
END
$$;

-- What every change of rows begins with: takes the administrators' lock until the end of the transaction, and opens
-- again what a fence that is gone has left closed. Writers never take this lock. Fails while a fence is under way.
CREATE OR REPLACE FUNCTION titan.begin_change(first bigint, last bigint) RETURNS void
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    closed titan.ranges;
BEGIN
    IF first IS NULL OR last IS NULL OR first < 0 OR first > last THEN
        RAISE EXCEPTION USING ERRCODE = 'TC003', MESSAGE = format('%s..=%s is no range of keys', first, last);
    END IF;
    PERFORM pg_advisory_xact_lock(x'7469746e'::int, -2);
    PERFORM titan.give_up(overdue.attempt, true) FROM (
        SELECT DISTINCT r.attempt FROM titan.ranges r
         WHERE r.range_first <= last AND r.range_last >= first AND r.closing_until < clock_timestamp()) overdue;
    SELECT r.* INTO closed FROM titan.ranges r
     WHERE r.range_first <= last AND r.range_last >= first AND r.state = 'closing' LIMIT 1;
    IF closed.attempt IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'TC005',
            MESSAGE = format('a fence of %s..=%s is under way until %s: try again',
                             closed.range_first, closed.range_last, closed.closing_until);
    END IF;
END
$$;

-- Cuts the rows at both borders of a range. The parts are what the whole was, and no writer notices.
CREATE OR REPLACE FUNCTION titan.cut(first bigint, last bigint) RETURNS void
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    whole titan.ranges;
BEGIN
    FOR whole IN
        DELETE FROM titan.ranges r
         WHERE r.range_first <= last AND r.range_last >= first AND (r.range_first < first OR r.range_last > last)
        RETURNING r.*
    LOOP
        INSERT INTO titan.ranges (range_first, range_last, cell, epoch, state, rest_until)
        SELECT part.first, part.last, whole.cell, whole.epoch, whole.state, whole.rest_until
          FROM (VALUES (whole.range_first, least(whole.range_last, cut.first - 1)),
                       (greatest(whole.range_first, cut.first), least(whole.range_last, cut.last)),
                       -- The largest key has no successor, but then nothing lies beyond it.
                       (CASE WHEN whole.range_last > cut.last THEN cut.last + 1 END, whole.range_last)
               ) AS part (first, last)
         WHERE part.first <= part.last;
    END LOOP;
END
$$;

-- Stops all writers of a range, of any borders. Answers with `outcome`:
--   fenced    nobody can write the range at an older epoch any more. Prove on the synchronous standby that this
--             is so before anybody is told: a cancelled COMMIT reports success without a standby.
--   busy      nothing was changed: `why` is `writers` (with their pids in `blockers`), `closing` or `resting`.
--   reopened  the range was closed, `blockers` were in the way for the whole budget, and it is open again.
--   lost      the range was closed for too long, and somebody opened it again. Nothing is fenced.
-- A repeated fence answers `fenced` again. TC004: the range is active at this epoch, or knows a later one.
--
-- It waits up to `quiet_ms` for writers older than 0.3 * `budget_ms` to end while the range is still open, and keeps
-- the range closed for `budget_ms` at most. It commits in between, so CALL has to be the only statement.
CREATE OR REPLACE PROCEDURE titan.fence(
    first bigint, last bigint, new_epoch bigint, budget_ms int, quiet_ms int, INOUT result jsonb DEFAULT NULL)
LANGUAGE plpgsql AS $$
DECLARE
    quiet_until timestamptz := clock_timestamp() + quiet_ms * interval '1 ms';
    closed_at timestamptz;
    until timestamptz;
    mine bigint;
    closed bigint;
    n bigint;
    already boolean;
    waiting bigint[];
    old_guard boolean;
    blockers jsonb;
    later titan.ranges;
BEGIN
    result := NULL;
    IF first IS NULL OR last IS NULL OR first < 0 OR first > last OR new_epoch IS NULL OR new_epoch < 0
       OR budget_ms IS NULL OR budget_ms < 10 OR quiet_ms IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'TC003',
            MESSAGE = 'titan.fence needs a range of keys, an epoch, a budget of at least 10 ms and a time for quiet';
    END IF;

    -- Quiet: a writer that would not be gone in time is waited for while nobody is refused.
    LOOP
        SELECT jsonb_agg(jsonb_build_object('pid', w.pid, 'key', w.key,
                   'age_ms', round(extract(epoch FROM clock_timestamp() - a.xact_start) * 1000)))
          INTO blockers
          FROM titan.writers(first, last) w JOIN pg_stat_activity a USING (pid)
         WHERE a.xact_start < clock_timestamp() - budget_ms * interval '0.3 ms';
        EXIT WHEN blockers IS NULL;
        IF clock_timestamp() >= quiet_until THEN
            result := jsonb_build_object('outcome', 'busy', 'why', 'writers', 'blockers', blockers);
            RETURN;
        END IF;
        COMMIT;
        PERFORM pg_sleep(0.02);
    END LOOP;
    COMMIT;
    /* failpoint fence_quiet */

    -- Close. Local, for a standby that hangs must not keep the range closed; what has to be proven comes at the end.
    SET LOCAL synchronous_commit = local;
    BEGIN
        PERFORM titan.begin_change(first, last);
    EXCEPTION WHEN SQLSTATE 'TC005' THEN
        result := jsonb_build_object('outcome', 'busy', 'why', 'closing');
    END;
    IF result IS NOT NULL THEN
        RETURN;
    END IF;
    SELECT r.* INTO later FROM titan.ranges r
     WHERE r.range_first <= last AND r.range_last >= first
       AND (r.epoch > new_epoch OR r.epoch = new_epoch AND r.state = 'active') LIMIT 1;
    IF later.range_first IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'TC004',
            MESSAGE = format('cannot fence %s..=%s at epoch %s: %s..=%s is %s for cell %s at epoch %s', first, last,
                             new_epoch, later.range_first, later.range_last, later.state, later.cell, later.epoch);
    END IF;
    -- Whether it is fenced at this epoch from border to border, without a gap.
    SELECT coalesce(sum(least(r.range_last, last)::numeric - greatest(r.range_first, first) + 1), 0)
           = last::numeric - first + 1
      INTO already
      FROM titan.ranges r
     WHERE r.range_first <= last AND r.range_last >= first AND r.state = 'fenced' AND r.epoch = new_epoch;
    IF already THEN
        result := jsonb_build_object('outcome', 'fenced', 'closed_ms', 0);
        RETURN;
    END IF;
    IF EXISTS (SELECT FROM titan.ranges r WHERE r.range_first <= last AND r.range_last >= first
                  AND r.state = 'active' AND r.rest_until > clock_timestamp()) THEN
        result := jsonb_build_object('outcome', 'busy', 'why', 'resting');
        RETURN;
    END IF;
    PERFORM titan.cut(first, last);
    mine := nextval('titan.attempts');
    until := clock_timestamp() + budget_ms * interval '0.9 ms';
    UPDATE titan.ranges r
       SET state = 'closing', reopen_as = r.state, attempt = mine, closing_until = until,
           rest_until = until + budget_ms * interval '1 ms'
     WHERE r.range_first >= first AND r.range_last <= last;
    GET DIAGNOSTICS closed = ROW_COUNT;
    -- What lies in no row, too: the epoch is remembered there, and a late activation with an older one refused.
    INSERT INTO titan.ranges (range_first, range_last, cell, epoch, state, reopen_as, attempt, closing_until)
    SELECT lower(gap)::bigint, (upper(gap) - 1)::bigint, '', 0, 'closing', 'absent', mine, until
      FROM unnest(nummultirange(numrange(first, last::numeric + 1)) - coalesce((
               SELECT range_agg(numrange(r.range_first, r.range_last::numeric + 1)) FROM titan.ranges r
                WHERE r.range_first >= first AND r.range_last <= last), '{}')) gap;
    GET DIAGNOSTICS n = ROW_COUNT;
    closed := closed + n;
    COMMIT;
    closed_at := clock_timestamp();
    /* failpoint fence_closed */

    -- Look, now that the close is committed: who registers later is refused. Then poll. A key whose lock is free once
    -- has no writer that passed. COMMIT gives back what was tried before the pause, and nobody waits for it.
    SELECT array_agg(DISTINCT w.key) INTO waiting FROM titan.writers(first, last) w;
    old_guard := EXISTS (SELECT FROM titan.old_writers());
    WHILE (waiting IS NOT NULL OR old_guard) AND clock_timestamp() < until - budget_ms * interval '0.1 ms' LOOP
        SELECT array_agg(held.key) INTO waiting FROM unnest(waiting) AS held (key)
         WHERE NOT pg_try_advisory_xact_lock(-1 - held.key);
        COMMIT;
        old_guard := old_guard AND EXISTS (SELECT FROM titan.old_writers());
        EXIT WHEN waiting IS NULL AND NOT old_guard;
        PERFORM pg_sleep(0.002);
    END LOOP;
    COMMIT;
    /* failpoint fence_drained */

    IF waiting IS NULL AND NOT old_guard THEN
        UPDATE titan.ranges r
           SET state = 'fenced', epoch = new_epoch, attempt = NULL, reopen_as = NULL, closing_until = NULL,
               rest_until = NULL
         WHERE r.attempt = mine AND r.state = 'closing';
        GET DIAGNOSTICS n = ROW_COUNT;
        IF n = closed THEN
            COMMIT;
            result := jsonb_build_object('outcome', 'fenced', 'attempt', mine, 'closed_ms',
                round(extract(epoch FROM clock_timestamp() - closed_at) * 1000, 1));
            RETURN;
        END IF;
        ROLLBACK; -- Somebody found it overdue, and has opened rows of it.
    END IF;
    SELECT jsonb_agg(jsonb_build_object('pid', w.pid, 'key', w.key)) INTO blockers FROM (
        SELECT p.pid, p.key FROM titan.writers(first, last) p WHERE p.key = ANY (waiting)
        UNION ALL SELECT o.pid, NULL FROM titan.old_writers() o WHERE old_guard) w;
    SET LOCAL synchronous_commit = local;
    PERFORM titan.give_up(mine, false);
    COMMIT;
    result := jsonb_build_object(
        'outcome', CASE WHEN waiting IS NULL AND NOT old_guard THEN 'lost' ELSE 'reopened' END, 'attempt', mine,
        'closed_ms', round(extract(epoch FROM clock_timestamp() - closed_at) * 1000, 1), 'blockers', blockers);
END
$$;

-- Lets a cell write a range, from an epoch on: one row takes the place of what is fenced there, of what the cell has
-- at an older epoch (so it also merges, and raises epochs), and of gaps. Anything else has to be fenced first.
-- Returns whether there was anything to do.
CREATE OR REPLACE FUNCTION titan.activate(first bigint, last bigint, new_cell text, new_epoch bigint) RETURNS boolean
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    other titan.ranges;
    already boolean;
BEGIN
    IF new_cell IS NULL OR new_epoch IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'TC003', MESSAGE = 'titan.activate needs a cell and an epoch';
    END IF;
    PERFORM titan.begin_change(first, last);
    SELECT r.* INTO other FROM titan.ranges r
     WHERE r.range_first <= last AND r.range_last >= first
       AND (r.epoch > new_epoch OR r.state = 'active' AND r.cell <> new_cell) LIMIT 1;
    IF other.range_first IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'TC004',
            MESSAGE = format('cannot activate %s..=%s for cell %s at epoch %s: %s..=%s is %s for cell %s at epoch %s',
                             first, last, new_cell, new_epoch, other.range_first, other.range_last, other.state,
                             other.cell, other.epoch);
    END IF;
    SELECT coalesce(sum(least(r.range_last, last)::numeric - greatest(r.range_first, first) + 1), 0)
           = last::numeric - first + 1
      INTO already
      FROM titan.ranges r
     WHERE r.range_first <= last AND r.range_last >= first AND r.state = 'active' AND r.epoch = new_epoch;
    IF already THEN
        RETURN false;
    END IF;
    PERFORM titan.cut(first, last);
    DELETE FROM titan.ranges r WHERE r.range_first >= first AND r.range_last <= last;
    INSERT INTO titan.ranges (range_first, range_last, cell, epoch, state)
    VALUES (first, last, new_cell, new_epoch, 'active');
    RETURN true;
END
$$;

-- Makes `at` the first key of a row. No writer notices. Returns whether there was anything to do.
CREATE OR REPLACE FUNCTION titan.split(at bigint) RETURNS boolean
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM titan.begin_change(at, at);
    IF NOT EXISTS (SELECT FROM titan.ranges r WHERE r.range_first < at AND r.range_last >= at) THEN
        RETURN false;
    END IF;
    PERFORM titan.cut(at, 9223372036854775807);
    RETURN true;
END
$$;

-- Makes one row of the rows inside a range, which have to touch and to agree on all but their keys. No writer
-- notices. Returns whether there was anything to do.
CREATE OR REPLACE FUNCTION titan.merge(first bigint, last bigint) RETURNS boolean
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    merged titan.ranges;
    n bigint;
    agree boolean;
BEGIN
    PERFORM titan.begin_change(first, last);
    SELECT count(*),
           coalesce(count(DISTINCT (r.cell, r.epoch, r.state)) = 1
               AND sum(r.range_last::numeric - r.range_first + 1) = max(r.range_last)::numeric - min(r.range_first) + 1,
               false)
      INTO n, agree
      FROM titan.ranges r WHERE r.range_first >= first AND r.range_last <= last;
    IF n < 2 OR NOT agree THEN
        RETURN false;
    END IF;
    SELECT min(r.range_first), max(r.range_last), min(r.cell), min(r.epoch), min(r.state), max(r.rest_until)
      INTO merged.range_first, merged.range_last, merged.cell, merged.epoch, merged.state, merged.rest_until
      FROM titan.ranges r WHERE r.range_first >= first AND r.range_last <= last;
    DELETE FROM titan.ranges r WHERE r.range_first >= first AND r.range_last <= last;
    INSERT INTO titan.ranges (range_first, range_last, cell, epoch, state, rest_until)
    VALUES (merged.range_first, merged.range_last, merged.cell, merged.epoch, merged.state, merged.rest_until);
    RETURN true;
END
$$;

-- Forgets a range that this data home gave away at `known_epoch` or before. What was fenced there is remembered no
-- longer, so call it when no step of an operation from before that epoch can still come: with the purge, days later.
-- Returns whether there was anything to do.
CREATE OR REPLACE FUNCTION titan.remove(first bigint, last bigint, known_epoch bigint) RETURNS boolean
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    kept titan.ranges;
BEGIN
    PERFORM titan.begin_change(first, last);
    SELECT r.* INTO kept FROM titan.ranges r
     WHERE r.range_first <= last AND r.range_last >= first
       AND (r.state <> 'fenced' OR r.epoch > known_epoch) LIMIT 1;
    IF kept.range_first IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'TC004',
            MESSAGE = format('cannot remove %s..=%s at epoch %s: %s..=%s is %s for cell %s at epoch %s', first, last,
                             known_epoch, kept.range_first, kept.range_last, kept.state, kept.cell, kept.epoch);
    END IF;
    PERFORM titan.cut(first, last);
    DELETE FROM titan.ranges r WHERE r.range_first >= first AND r.range_last <= last;
    RETURN FOUND;
END
$$;

REVOKE ALL ON ALL ROUTINES IN SCHEMA titan FROM PUBLIC;
GRANT USAGE ON SCHEMA titan TO PUBLIC;
GRANT SELECT ON titan.ranges TO PUBLIC;
GRANT EXECUTE ON FUNCTION titan.guard(bigint, text, bigint), titan.reopen(bigint), titan.refuse_unguarded(),
    titan.protect(regclass) TO PUBLIC;
