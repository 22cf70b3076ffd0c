-- As before; and a period that ends within an hour is locked as well: a transaction that writes usage
-- in the last seconds of it may still be open when the period is billed. No statement takes longer
-- than five minutes.
CREATE OR REPLACE FUNCTION mark_late(tenants uuid[], lo timestamptz[], hi timestamptz[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    billable timestamptz;
BEGIN
    SELECT max(b.ends_at) INTO billable FROM billing_period b
    WHERE b.ends_at <= interval '1 hour'
        + greatest(now(), (SELECT max(w.complete_until) FROM source_watermark w));
    IF billable IS NULL OR NOT EXISTS (SELECT FROM unnest(lo) AS l (at) WHERE l.at < billable) THEN
        RETURN;
    END IF;
    WITH touched AS MATERIALIZED (
        SELECT b.tenant_id, b.period, b.state
        FROM unnest(tenants, lo, hi) AS u (tenant_id, lo, hi)
        JOIN billing_period b ON b.tenant_id = u.tenant_id AND u.lo < b.ends_at
            AND u.hi >= b.starts_at AND b.ends_at <= billable
        WHERE u.lo < billable
        FOR KEY SHARE OF b
    )
    INSERT INTO late_usage (tenant_id, period)
    SELECT DISTINCT t.tenant_id, t.period FROM touched t WHERE t.state = 'closed'
    ORDER BY 1, 2
    ON CONFLICT DO NOTHING;
END $$;
-- CREATE OR REPLACE forgets the owner's rights of 009.
ALTER FUNCTION mark_late(uuid[], timestamptz[], timestamptz[])
    SECURITY DEFINER SET search_path FROM CURRENT;
