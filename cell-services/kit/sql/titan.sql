-- Ownership of keys inside a data home: the proof that an older epoch can no longer write a range.
--
-- Run as the database's administrator, in one transaction, as often as wanted: it changes nothing that is
-- already so. Services may call titan.guard and titan.protect; only the administrator fences and activates.
--
-- SQLSTATEs:
--   TC001  the key is not owned here, by this cell, at this epoch (DETAIL is JSON)
--   TC002  a write to a protected table whose transaction has not passed titan.guard for that owner
--   TC003  the guard was used wrongly (isolation level, missing arguments)
--   TC004  a fence or an activation carries an epoch that is too old

SELECT pg_advisory_xact_lock(x'7469746e'::int, -1);

CREATE SCHEMA IF NOT EXISTS titan;

CREATE TABLE IF NOT EXISTS titan.ownership (
    range_first bigint PRIMARY KEY CHECK (range_first >= 0),
    range_last  bigint NOT NULL,
    cell        text NOT NULL,
    epoch       bigint NOT NULL CHECK (epoch >= 0),
    state       text NOT NULL CHECK (state IN ('active', 'fenced')),
    CHECK (range_first <= range_last),
    -- numrange, for int8range would need last + 1, which the largest key does not have.
    CONSTRAINT ownership_no_overlap
        EXCLUDE USING gist (numrange(range_first::numeric, range_last::numeric, '[]') WITH &&)
);
COMMENT ON TABLE titan.ownership IS
    'Which ranges of keys may be written in this data home, by which cell, since which epoch';

-- The ranges that this transaction has passed the guard for. The setting names the transaction, so that a
-- value left over in a session, however it got there, is worth nothing to the next transaction.
CREATE OR REPLACE FUNCTION titan.guarded_ranges() RETURNS nummultirange
LANGUAGE plpgsql STABLE PARALLEL UNSAFE AS $$
DECLARE
    setting text := current_setting('titan.guarded', true);
BEGIN
    IF setting IS NULL OR setting = ''
       OR split_part(setting, ' ', 1) IS DISTINCT FROM pg_current_xact_id_if_assigned()::text THEN
        RETURN '{}'::nummultirange;
    END IF;
    RETURN split_part(setting, ' ', 2)::nummultirange;
END
$$;

-- Every transaction that writes rows of an owner calls this first. It holds the range, shared, until the
-- transaction ends, so a fence waits for it; and it reads the row of the range after it has the lock, so it
-- sees a fence that came first.
--
-- An epoch older than the row's is refused. A newer one is not: the row is authoritative, and a change of the
-- routing table that concerns this data home always passes through titan.fence or titan.activate.
CREATE OR REPLACE FUNCTION titan.guard(owner bigint, cell text, epoch bigint) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE AS $$
DECLARE
    candidate bigint;
    held titan.ownership;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        -- Under a transaction snapshot the second look below could not see a fence that has just committed.
        RAISE EXCEPTION USING ERRCODE = 'TC003',
            MESSAGE = format('titan.guard needs isolation level READ COMMITTED, this transaction has %s',
                             upper(current_setting('transaction_isolation'))),
            HINT = 'Begin the transaction with BEGIN ISOLATION LEVEL READ COMMITTED.';
    END IF;
    IF owner IS NULL OR guard.cell IS NULL OR guard.epoch IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'TC003', MESSAGE = 'titan.guard needs an owner, a cell and an epoch';
    END IF;

    SELECT o.range_first INTO candidate FROM titan.ownership o
     WHERE o.range_first <= owner ORDER BY o.range_first DESC LIMIT 1;
    IF candidate IS NOT NULL THEN
        PERFORM pg_advisory_xact_lock_shared(x'7469746e'::int, hashint8(candidate));
        -- A new statement, hence a new snapshot: whatever was committed before the lock was granted is seen.
        SELECT o.* INTO held FROM titan.ownership o
         WHERE o.range_first = candidate AND o.range_last >= owner;
    END IF;

    IF held.range_first IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'TC001',
            MESSAGE = format('key %s lies in no range of this data home', owner),
            DETAIL = json_build_object('owner', owner, 'reason', 'unknown')::text;
    END IF;
    IF held.state <> 'active' OR held.cell <> guard.cell OR held.epoch > guard.epoch THEN
        RAISE EXCEPTION USING ERRCODE = 'TC001',
            MESSAGE = format('key %s is not owned by cell %s at epoch %s: range %s..=%s is %s for cell %s since epoch %s',
                             owner, guard.cell, guard.epoch, held.range_first, held.range_last,
                             held.state, held.cell, held.epoch),
            DETAIL = json_build_object(
                'owner', owner,
                'reason', CASE WHEN held.state <> 'active' THEN 'fenced'
                               WHEN held.cell <> guard.cell THEN 'moved' ELSE 'stale' END,
                'range_first', held.range_first, 'range_last', held.range_last,
                'cell', held.cell, 'epoch', held.epoch, 'state', held.state)::text;
    END IF;

    PERFORM set_config('titan.guarded',
        pg_current_xact_id()::text || ' ' || replace((titan.guarded_ranges() + nummultirange(
            numrange(held.range_first::numeric, held.range_last::numeric, '[]')))::text, ' ', ''),
        true);
END
$$;

-- The trigger of protected tables. It does not fire for rows that logical replication applies.
CREATE OR REPLACE FUNCTION titan.refuse_unguarded() RETURNS trigger
LANGUAGE plpgsql AS $$
DECLARE
    guarded nummultirange := titan.guarded_ranges();
    stranger bigint;
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        RAISE EXCEPTION USING ERRCODE = 'TC002',
            MESSAGE = format('TRUNCATE of %I.%I is refused: it would take rows of every owner',
                             TG_TABLE_SCHEMA, TG_TABLE_NAME),
            HINT = 'DELETE the rows of one owner in a transaction that has passed titan.guard.';
    END IF;
    IF TG_OP <> 'INSERT' AND NOT (guarded @> OLD.owner_id::numeric) THEN
        stranger := OLD.owner_id;
    ELSIF TG_OP <> 'DELETE' AND NOT (guarded @> NEW.owner_id::numeric) THEN
        stranger := NEW.owner_id;
    END IF;
    IF stranger IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'TC002',
            MESSAGE = format('%s of a row of owner %s in %I.%I without the guard',
                             TG_OP, stranger, TG_TABLE_SCHEMA, TG_TABLE_NAME),
            HINT = 'Call titan.guard(owner, cell, epoch) first, in the same transaction.';
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

-- Stops all writers of a range: waits for those that passed the guard, refuses all who come later.
CREATE OR REPLACE FUNCTION titan.fence(first bigint, last bigint, new_epoch bigint) RETURNS void
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    held titan.ownership;
BEGIN
    PERFORM pg_advisory_xact_lock(x'7469746e'::int, hashint8(first));
    SELECT o.* INTO held FROM titan.ownership o WHERE o.range_first = first AND o.range_last = last FOR UPDATE;
    IF held.range_first IS NULL THEN
        -- Remember the epoch, so that a late activation with an older one is refused.
        INSERT INTO titan.ownership VALUES (first, last, '', new_epoch, 'fenced');
    ELSIF held.state = 'fenced' AND held.epoch = new_epoch THEN
        NULL;
    ELSIF held.epoch >= new_epoch THEN
        RAISE EXCEPTION USING ERRCODE = 'TC004',
            MESSAGE = format('cannot fence %s..=%s at epoch %s: it is %s at epoch %s',
                             first, last, new_epoch, held.state, held.epoch);
    ELSE
        UPDATE titan.ownership SET state = 'fenced', epoch = new_epoch WHERE range_first = first;
    END IF;
END
$$;

-- Lets a cell write a range, from an epoch on.
CREATE OR REPLACE FUNCTION titan.activate(first bigint, last bigint, new_cell text, new_epoch bigint) RETURNS void
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    held titan.ownership;
BEGIN
    PERFORM pg_advisory_xact_lock(x'7469746e'::int, hashint8(first));
    SELECT o.* INTO held FROM titan.ownership o WHERE o.range_first = first AND o.range_last = last FOR UPDATE;
    IF held.range_first IS NULL THEN
        INSERT INTO titan.ownership VALUES (first, last, new_cell, new_epoch, 'active');
    ELSIF held.state = 'active' AND held.epoch = new_epoch AND held.cell = new_cell THEN
        NULL;
    ELSIF held.epoch > new_epoch OR (held.epoch = new_epoch AND held.state = 'active') THEN
        RAISE EXCEPTION USING ERRCODE = 'TC004',
            MESSAGE = format('cannot activate %s..=%s for cell %s at epoch %s: it is %s for cell %s at epoch %s',
                             first, last, new_cell, new_epoch, held.state, held.cell, held.epoch);
    ELSE
        UPDATE titan.ownership SET state = 'active', cell = new_cell, epoch = new_epoch WHERE range_first = first;
    END IF;
END
$$;

REVOKE ALL ON FUNCTION titan.fence(bigint, bigint, bigint) FROM PUBLIC;
REVOKE ALL ON FUNCTION titan.activate(bigint, bigint, text, bigint) FROM PUBLIC;
GRANT USAGE ON SCHEMA titan TO PUBLIC;
GRANT SELECT ON titan.ownership TO PUBLIC;
GRANT EXECUTE ON FUNCTION titan.guard(bigint, text, bigint), titan.guarded_ranges(),
    titan.refuse_unguarded(), titan.protect(regclass) TO PUBLIC;
