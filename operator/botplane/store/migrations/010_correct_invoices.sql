-- What arrives after a period is billed: marks that make the next invoice correct it.

-- Mark the closed periods that usage in [lo, hi] touches. A period that may be billed right now is
-- locked first: either its invoice sees this usage, or this sees that it is closed. So is one that
-- ends within an hour: a transaction that writes usage in the last seconds of it may still be open
-- when the period is billed. No statement takes longer than five minutes.
CREATE FUNCTION mark_late(tenants uuid[], lo timestamptz[], hi timestamptz[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
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

CREATE FUNCTION usage_hourly_late() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM mark_late(array_agg(w.tenant_id), array_agg(w.lo), array_agg(w.hi))
    FROM (SELECT n.tenant_id, min(n.hour) AS lo, max(n.hour) + interval '59 min 59 s' AS hi
        FROM written n GROUP BY n.tenant_id) AS w;
    RETURN NULL;
END $$;
CREATE TRIGGER usage_hourly_inserted AFTER INSERT ON usage_hourly
    REFERENCING NEW TABLE AS written FOR EACH STATEMENT EXECUTE FUNCTION usage_hourly_late();
CREATE TRIGGER usage_hourly_updated AFTER UPDATE ON usage_hourly
    REFERENCING NEW TABLE AS written FOR EACH STATEMENT EXECUTE FUNCTION usage_hourly_late();

-- A late trade of a tenant with a high-water mark changes what came after it too.
CREATE FUNCTION trade_commission_late() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM mark_late(ARRAY[NEW.tenant_id], ARRAY[NEW.closed_at], ARRAY[CASE WHEN EXISTS (
            SELECT FROM subscription_phase s JOIN plan_version v ON v.plan = s.plan
            WHERE s.tenant_id = NEW.tenant_id AND v.commission_netting = 'hwm')
        THEN 'infinity' ELSE NEW.closed_at END]);
    RETURN NULL;
END $$;
CREATE TRIGGER trade_commission_late AFTER INSERT OR UPDATE ON trade_commission
    FOR EACH ROW EXECUTE FUNCTION trade_commission_late();

-- An interval that ends earlier or later than it was billed changes only the time between.
CREATE FUNCTION runtime_interval_late() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    lo timestamptz := NEW.started_at;
    hi timestamptz := COALESCE(NEW.ended_at, 'infinity');
BEGIN
    IF TG_OP = 'UPDATE' THEN
        IF (OLD.started_at, OLD.cpu_milli, OLD.mem_bytes, OLD.storage_bytes)
            IS NOT DISTINCT FROM (NEW.started_at, NEW.cpu_milli, NEW.mem_bytes,
                NEW.storage_bytes)
        THEN
            lo := least(hi, COALESCE(OLD.ended_at, 'infinity'));
        ELSE
            lo := least(OLD.started_at, NEW.started_at);
        END IF;
        hi := greatest(hi, COALESCE(OLD.ended_at, 'infinity'));
    END IF;
    PERFORM mark_late(ARRAY[NEW.tenant_id], ARRAY[lo], ARRAY[hi]);
    RETURN NULL;
END $$;
CREATE TRIGGER runtime_interval_inserted AFTER INSERT ON runtime_interval
    FOR EACH ROW EXECUTE FUNCTION runtime_interval_late();
CREATE TRIGGER runtime_interval_updated AFTER UPDATE ON runtime_interval
    FOR EACH ROW WHEN (
        (OLD.started_at, OLD.ended_at, OLD.cpu_milli, OLD.mem_bytes, OLD.storage_bytes)
        IS DISTINCT FROM
        (NEW.started_at, NEW.ended_at, NEW.cpu_milli, NEW.mem_bytes, NEW.storage_bytes))
    EXECUTE FUNCTION runtime_interval_late();

-- What the lines of billed periods would be now, where that differs from what was billed for them
-- then and by corrections since: the lines of the invoice that is not void and all corrections that
-- are not void, also those of an invoice that is void since. Prices are those of the old period;
-- amounts are differences.
CREATE FUNCTION corrections(tenants uuid[], periods text[])
RETURNS TABLE (tenant_id uuid, line_key text, meter text, starts_at timestamptz,
    ends_at timestamptz, quantity numeric, exact numeric, amount_minor bigint, detail jsonb,
    corrects_invoice uuid, corrects_key text)
LANGUAGE sql STABLE AS $$
    WITH billed AS (
        SELECT i.tenant_id, i.period, COALESCE(l.corrects_key, l.line_key) AS line_key, l.meter,
            l.starts_at, l.ends_at, l.quantity, l.exact, l.amount_minor
        FROM unnest(tenants, periods) AS asked (tenant_id, period)
        JOIN invoice i ON i.tenant_id = asked.tenant_id AND i.period = asked.period
        JOIN invoice_line l ON l.tenant_id = i.tenant_id
            AND (l.invoice_id = i.invoice_id AND l.kind <> 'correction'
                OR l.corrects_invoice = i.invoice_id)
        JOIN invoice o ON o.tenant_id = l.tenant_id AND o.invoice_id = l.invoice_id
            AND o.status <> 'void'
    ),
    was AS (
        SELECT b.tenant_id, b.period, b.line_key, max(b.meter) AS meter,
            min(b.starts_at) AS starts_at, max(b.ends_at) AS ends_at,
            sum(b.quantity) AS quantity, sum(b.exact) AS exact, sum(b.amount_minor) AS minor
        FROM billed b GROUP BY b.tenant_id, b.period, b.line_key
    ),
    changed AS (
        SELECT COALESCE(n.tenant_id, w.tenant_id) AS tenant_id,
            COALESCE(n.period, w.period) AS period, COALESCE(n.line_key, w.line_key) AS line_key,
            COALESCE(n.meter, w.meter) AS meter, COALESCE(n.starts_at, w.starts_at) AS starts_at,
            COALESCE(n.ends_at, w.ends_at) AS ends_at,
            COALESCE(n.quantity, 0) - COALESCE(w.quantity, 0) AS quantity,
            COALESCE(n.exact, 0) - COALESCE(w.exact, 0) AS exact,
            COALESCE(n.amount_minor, 0) AS now_minor, COALESCE(w.minor, 0)::bigint AS was_minor
        FROM (SELECT * FROM charge(tenants, periods, 'infinity')) n
        FULL JOIN was w ON w.tenant_id = n.tenant_id AND w.period = n.period
            AND w.line_key = n.line_key
    )
    SELECT c.tenant_id, 'correction/' || i.number || '/' || c.line_key, c.meter, c.starts_at,
        c.ends_at, c.quantity, c.exact, c.now_minor - c.was_minor,
        jsonb_build_object('number', i.number, 'period', c.period, 'wasMinor', c.was_minor,
            'nowMinor', c.now_minor), i.invoice_id, c.line_key
    FROM changed c
    JOIN invoice i ON i.tenant_id = c.tenant_id AND i.period = c.period AND i.status <> 'void'
    WHERE c.now_minor <> c.was_minor
$$;
