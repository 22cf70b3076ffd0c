-- What is kept for how long: usage events 13 months, their hourly sums 25 months, the content of
-- webhooks 90 days, revoked keys 13 months; intervals, invoices, ledger and audit log for good.

CREATE TABLE pruned_usage (
    relation text PRIMARY KEY,
    until timestamptz NOT NULL
);
COMMENT ON TABLE pruned_usage IS 'Before this moment the partitions of a table are gone.';
SELECT grant_writes(member, 'SELECT', ARRAY['pruned_usage'])
FROM (VALUES ('botplane_billing'), ('botplane_web')) AS m (member);

CREATE INDEX webhook_inbox_content ON webhook_inbox (received_at) WHERE body <> '{}';

-- Whether no invoice will ever ask again for the usage of [lo, hi): every period that it touches is
-- closed, and too old to be corrected by one that is not.
CREATE FUNCTION is_settled(lo timestamptz, hi timestamptz) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT NOT EXISTS (
        SELECT FROM billing_period b
        WHERE b.starts_at < hi AND b.ends_at > lo AND (b.state <> 'closed' OR EXISTS (
            SELECT FROM billing_period n WHERE n.tenant_id = b.tenant_id AND n.state <> 'closed'
                AND n.starts_at - interval '13 months' < b.ends_at)))
$$;

-- Drop the months whose time is over, oldest first, and forget what else has had its time. Who
-- waits for a table holds up everybody behind: after two seconds it is left for the next time.
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
    DELETE FROM ingest_key k WHERE k.revoked_at < at - interval '13 months';
    GET DIAGNOSTICS amount = ROW_COUNT;
    what := 'ingest_key';
    RETURN NEXT;
END $$;
REVOKE EXECUTE ON FUNCTION prune(timestamptz) FROM PUBLIC;
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles r WHERE r.rolname = 'botplane_web') THEN
        GRANT EXECUTE ON FUNCTION prune(timestamptz) TO botplane_web;
    END IF;
END $$;
