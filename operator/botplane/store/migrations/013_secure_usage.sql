-- The tables of 010 to 012 get what 009 gives: rows by tenant, and rights by process.

SELECT secure_tenant_tables();

-- Totals follow the usage whoever writes it; segments are made and dropped by whoever finds them
-- missing or wrong.
DO $$
DECLARE
    f regprocedure;
    member text;
BEGIN
    FOREACH f IN ARRAY ARRAY['add_events_to_totals()', 'add_intervals_to_totals()',
        'change_intervals_in_totals()', 'drop_segments_of_tenant()', 'drop_segments_of_plan()',
        'build_segments(uuid[],text[])']::regprocedure[] LOOP
        EXECUTE format('ALTER FUNCTION %s SECURITY DEFINER SET search_path FROM CURRENT', f);
    END LOOP;
    REVOKE EXECUTE ON FUNCTION build_segments(uuid[], text[]) FROM PUBLIC;
    FOR member IN SELECT r.rolname FROM pg_roles r
        WHERE r.rolname IN ('botplane_operator', 'botplane_web') LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION build_segments(uuid[], text[]) TO %I', member);
    END LOOP;
END $$;

SELECT grant_writes('botplane_operator', 'INSERT, UPDATE', ARRAY['ingest_key', 'spend_block']);
SELECT grant_writes('botplane_operator', 'INSERT', ARRAY['limit_notice']);
SELECT grant_writes('botplane_operator', 'SELECT', ARRAY['invoice_open']);
SELECT grant_writes('botplane_tenant', 'SELECT', ARRAY['limit_notice', 'spend_block']);

-- Rows that lie outside of all months: the web process looks after them and reads no partition.
CREATE FUNCTION early_rows() RETURNS bigint LANGUAGE sql STABLE SECURITY DEFINER
SET search_path FROM CURRENT AS $$
    SELECT (SELECT count(*) FROM usage_event_default) + (SELECT count(*) FROM usage_hourly_default)
$$;
REVOKE EXECUTE ON FUNCTION early_rows() FROM PUBLIC;
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles r WHERE r.rolname = 'botplane_web') THEN
        GRANT EXECUTE ON FUNCTION early_rows() TO botplane_web;
    END IF;
END $$;
