-- The keys of usage events go after 70 days: events are accepted for 45, and what is older than its
-- key could be is refused, so that no event counts twice because its key is gone.

COMMENT ON TABLE pruned_usage IS
    'Before this moment the partitions of a table are gone, or its rows: none is accepted any more.';

-- Keys come in the order of time, nearly: small enough to cost nothing while events are stored.
CREATE INDEX usage_event_key_occurred ON usage_event_key USING brin (occurred_at);

-- As before, and keys of events. They go one time after they are refused: whoever was storing an
-- event when the bound moved has finished since, so that no event loses its key while it is stored.
-- Drop the months whose time is over, oldest first, and forget what else has had its time. Who
-- waits for a table holds up everybody behind: after two seconds it is left for the next time.
CREATE OR REPLACE FUNCTION prune(at timestamptz) RETURNS TABLE (what text, amount bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET lock_timeout = '2s' AS $$
DECLARE
    child record;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('prune', 0)) THEN
        RETURN;
    END IF;
    PERFORM ensure_periods(at);
    FOR child IN
        SELECT k.parent, c.relname AS name, m.month AT TIME ZONE 'UTC' AS lo,
            (m.month + interval '1 month') AT TIME ZONE 'UTC' AS hi
        FROM (VALUES ('usage_event', interval '13 months'), ('usage_hourly', interval '25 months'))
            AS k (parent, kept)
        JOIN pg_inherits i ON i.inhparent = k.parent::regclass
        JOIN pg_class c ON c.oid = i.inhrelid AND c.relname ~ ('^' || k.parent || '_[0-9]{6}$')
        CROSS JOIN LATERAL (SELECT to_date(right(c.relname, 6), 'YYYYMM')::timestamp AS month) AS m
        WHERE (m.month + interval '1 month') AT TIME ZONE 'UTC' <= at - k.kept
        ORDER BY k.parent, m.month
    LOOP
        CONTINUE WHEN NOT is_settled(child.lo, child.hi);
        EXECUTE format('DROP TABLE %I', child.name);
        INSERT INTO pruned_usage AS p VALUES (child.parent, child.hi)
        ON CONFLICT (relation) DO UPDATE SET until = greatest(p.until, excluded.until);
        PERFORM audit_append('system', 'botplane', 'prune', child.name, '{}', at);
        what := child.name;
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
