-- Retention: a month of usage goes only when a file has it: events after 13 months, hourly sums
-- after 25, intervals after 10 years. The keys of events go after 70 days: events are accepted for
-- 45, and what is older than its key could be is refused, so that no event counts twice because
-- its key is gone.

CREATE TABLE pruned_usage (
    relation text PRIMARY KEY,
    until timestamptz NOT NULL
);
COMMENT ON TABLE pruned_usage IS
    'Before this moment the partitions of a table are gone, or its rows: none is accepted any more.';

CREATE TABLE archived_usage (
    part text PRIMARY KEY CHECK (part ~ '^[a-z_]+_[0-9]{6}$'),
    relation text NOT NULL CHECK (relation IN ('usage_event', 'usage_hourly', 'runtime_interval')),
    starts_at timestamptz(0) NOT NULL,
    ends_at timestamptz(0) NOT NULL,
    rows bigint NOT NULL,
    quantity numeric NOT NULL,
    sha256 text NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    archived_at timestamptz(0) NOT NULL,
    pruned_at timestamptz(0)
);
COMMENT ON TABLE archived_usage IS 'Months of which a file exists; what is pruned is nowhere else.';
COMMENT ON COLUMN archived_usage.quantity IS 'Sum over the rows; of intervals, their seconds.';

-- Whether no invoice will ever ask again for the usage of [lo, hi): every period that it touches is
-- closed, and too old to be corrected by one that is not.
CREATE FUNCTION is_settled(lo timestamptz, hi timestamptz) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT NOT EXISTS (
        SELECT FROM billing_period b
        WHERE b.starts_at < hi AND b.ends_at > lo AND (b.state <> 'closed' OR EXISTS (
            SELECT FROM billing_period n WHERE n.tenant_id = b.tenant_id AND n.state <> 'closed'
                AND n.starts_at - interval '13 months' < b.ends_at)))
$$;

CREATE FUNCTION month_sums(relation text, lo timestamptz, hi timestamptz)
RETURNS TABLE (rows bigint, quantity numeric) LANGUAGE sql STABLE AS $$
    SELECT count(*), COALESCE(sum(u.quantity), 0)
    FROM usage_event u WHERE relation = 'usage_event' AND u.occurred_at >= lo AND u.occurred_at < hi
    HAVING relation = 'usage_event'
    UNION ALL
    SELECT count(*), COALESCE(sum(u.quantity), 0)
    FROM usage_hourly u WHERE relation = 'usage_hourly' AND u.hour >= lo AND u.hour < hi
    HAVING relation = 'usage_hourly'
    UNION ALL
    SELECT count(*), COALESCE(sum(extract(epoch FROM i.ended_at - i.started_at)), 0)
    FROM runtime_interval i
    WHERE relation = 'runtime_interval' AND i.ended_at >= lo AND i.ended_at < hi
    HAVING relation = 'runtime_interval'
$$;

-- The months whose time is over, as they are now; what ends in a month may have begun at any time
-- before.
CREATE FUNCTION months_over(at timestamptz)
RETURNS TABLE (part text, relation text, starts_at timestamptz, ends_at timestamptz)
LANGUAGE sql STABLE AS $$
    SELECT k.relation || to_char(k.month, '_YYYYMM'), k.relation, b.lo, b.hi
    FROM (
        SELECT r.relation, to_date(right(c.relname, 6), 'YYYYMM')::timestamp AS month, r.kept
        FROM (VALUES ('usage_event', interval '13 months'), ('usage_hourly', interval '25 months'))
            AS r (relation, kept)
        JOIN pg_inherits i ON i.inhparent = r.relation::regclass
        JOIN pg_class c ON c.oid = i.inhrelid AND c.relname ~ ('^' || r.relation || '_[0-9]{6}$')
        UNION ALL
        SELECT DISTINCT 'runtime_interval', date_trunc('month', i.ended_at AT TIME ZONE 'UTC'),
            interval '10 years'
        FROM runtime_interval i WHERE i.ended_at < at - interval '10 years'
    ) AS k
    CROSS JOIN LATERAL (SELECT k.month AT TIME ZONE 'UTC' AS lo,
        (k.month + interval '1 month') AT TIME ZONE 'UTC' AS hi) AS b
    WHERE b.hi <= at - k.kept AND is_settled(
        CASE WHEN k.relation = 'runtime_interval' THEN '-infinity' ELSE b.lo END, b.hi)
$$;

-- Drop the months that a file has, and forget what else has had its time. What was put in since a
-- month was counted belongs to a period that is not billed: looked at again when nobody can put in
-- any more. Keys of events go one time after they are refused: whoever was storing an event when
-- the bound moved has finished since, so that no event loses its key while it is stored. Who waits
-- for a table holds up everybody behind: after two seconds it is left for the next time.
CREATE FUNCTION prune(at timestamptz) RETURNS TABLE (what text, amount bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET lock_timeout = '2s' AS $$
DECLARE
    child record;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('prune', 0)) THEN
        RETURN;
    END IF;
    PERFORM ensure_periods(at);
    FOR child IN
        SELECT a.part, a.relation, a.starts_at AS lo, a.ends_at AS hi, a.rows, a.quantity
        FROM archived_usage a WHERE a.pruned_at IS NULL ORDER BY a.relation, a.starts_at
    LOOP
        CONTINUE WHEN NOT EXISTS (SELECT FROM month_sums(child.relation, child.lo, child.hi) s
            WHERE s.rows = child.rows AND s.quantity = child.quantity);
        IF child.relation <> 'runtime_interval' THEN
            EXECUTE format('LOCK TABLE %I IN ACCESS EXCLUSIVE MODE', child.relation);
        END IF;
        CONTINUE WHEN child.part NOT IN (SELECT m.part FROM months_over(at) m);
        IF child.relation = 'runtime_interval' THEN
            DELETE FROM runtime_interval i WHERE i.ended_at >= child.lo AND i.ended_at < child.hi;
        ELSE
            EXECUTE format('DROP TABLE %I', child.part);
        END IF;
        UPDATE archived_usage a SET pruned_at = at WHERE a.part = child.part;
        INSERT INTO pruned_usage AS p VALUES (child.relation, child.hi)
        ON CONFLICT (relation) DO UPDATE SET until = greatest(p.until, excluded.until);
        PERFORM audit_append('system', 'botplane', 'prune', child.part, '{}', at);
        what := child.part;
        amount := 1;
        RETURN NEXT;
    END LOOP;

    UPDATE webhook_inbox w SET body = '{}'
    WHERE w.received_at < at - interval '90 days' AND w.processed_at IS NOT NULL
        AND w.body <> '{}';
    GET DIAGNOSTICS amount = ROW_COUNT;
    what := 'webhook_inbox';
    RETURN NEXT;
    DELETE FROM usage_event_key k WHERE k.occurred_at < (
        SELECT p.until FROM pruned_usage p WHERE p.relation = 'usage_event_key');
    GET DIAGNOSTICS amount = ROW_COUNT;
    what := 'usage_event_key';
    RETURN NEXT;
    INSERT INTO pruned_usage AS p VALUES ('usage_event_key', at - interval '70 days')
    ON CONFLICT (relation) DO UPDATE SET until = greatest(p.until, excluded.until);
    DELETE FROM ingest_key k WHERE k.revoked_at < at - interval '13 months';
    GET DIAGNOSTICS amount = ROW_COUNT;
    what := 'ingest_key';
    RETURN NEXT;
END $$;
