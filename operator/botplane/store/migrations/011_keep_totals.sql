-- Where every tenant stands, kept up with the usage itself: one row per cut, meter and bot.
-- Nothing here is a source: all of it can be built again from intervals and events, and invoices
-- are computed from those alone.

CREATE TABLE usage_segment (
    tenant_id uuid NOT NULL,
    starts_at timestamptz NOT NULL,
    ends_at timestamptz NOT NULL,
    period text NOT NULL,
    period_starts_at timestamptz NOT NULL,
    period_ends_at timestamptz NOT NULL,
    plan text NOT NULL,
    version integer NOT NULL,
    counted_from timestamptz NOT NULL,
    counted_until timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, starts_at),
    CHECK (ends_at > starts_at),
    CHECK (counted_from <= starts_at AND ends_at <= counted_until)
);
COMMENT ON TABLE usage_segment IS
    'The cuts of periods that totals are kept for; gone when a plan or a subscription changes.';
CREATE INDEX usage_segment_period ON usage_segment (period_ends_at);

CREATE TABLE usage_total (
    tenant_id uuid NOT NULL,
    starts_at timestamptz NOT NULL,
    meter text NOT NULL,
    bot_id uuid NOT NULL,
    quantity numeric NOT NULL,
    PRIMARY KEY (tenant_id, starts_at, meter, bot_id)
) WITH (fillfactor = 70);
COMMENT ON TABLE usage_total IS
    'Events and closed intervals of a segment; bot_id of all zeros: no bot. Exact, never rounded.';

-- Writers of usage share this lock; whoever makes or removes segments holds it alone. Without it
-- usage that is being written while a segment is made would be in neither.
CREATE FUNCTION share_totals() RETURNS void LANGUAGE sql AS $$
    SELECT pg_advisory_xact_lock_shared(hashtextextended('usage_total', 0))
$$;
CREATE FUNCTION hold_totals() RETURNS void LANGUAGE sql AS $$
    SELECT pg_advisory_xact_lock(hashtextextended('usage_total', 0))
$$;

-- What one closed interval adds to a segment, by meter.
CREATE FUNCTION interval_meters(seconds numeric, container text, cpu_milli integer,
    mem_bytes bigint, storage_bytes bigint DEFAULT 0)
RETURNS TABLE (meter text, quantity numeric)
LANGUAGE sql IMMUTABLE AS $$
    SELECT v.meter, v.quantity FROM (VALUES
        ('bot_seconds', CASE WHEN container = 'bot' THEN seconds ELSE 0 END),
        ('cpu_core_seconds', seconds * cpu_milli * 0.001),
        ('memory_gib_seconds', seconds * mem_bytes * 0.000000000931322574615478515625),
        ('storage_gb_hours', gb_hours(seconds * storage_bytes))
    ) AS v (meter, quantity)
    WHERE v.quantity > 0
$$;

CREATE FUNCTION add_events_to_totals() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM share_totals();
    INSERT INTO usage_total AS t (tenant_id, starts_at, meter, bot_id, quantity)
    SELECT e.tenant_id, s.starts_at, e.meter,
        COALESCE(e.bot_id, '00000000-0000-0000-0000-000000000000') AS bot, sum(e.quantity)
    FROM added e JOIN usage_segment s ON s.tenant_id = e.tenant_id
        AND e.occurred_at >= s.starts_at AND e.occurred_at < s.ends_at
    GROUP BY e.tenant_id, s.starts_at, e.meter, bot
    ORDER BY e.tenant_id, s.starts_at, e.meter, bot
    ON CONFLICT (tenant_id, starts_at, meter, bot_id) DO UPDATE
    SET quantity = t.quantity + excluded.quantity;
    RETURN NULL;
END $$;
CREATE TRIGGER add_to_totals AFTER INSERT ON usage_event
    REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION add_events_to_totals();

CREATE FUNCTION add_intervals_to_totals() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM changed c WHERE c.ended_at IS NOT NULL) THEN
        RETURN NULL;
    END IF;
    PERFORM share_totals();
    INSERT INTO usage_total AS t (tenant_id, starts_at, meter, bot_id, quantity)
    SELECT i.tenant_id, s.starts_at, m.meter, i.bot_id, sum(m.quantity)
    FROM changed i JOIN usage_segment s ON s.tenant_id = i.tenant_id
        AND i.started_at < s.ends_at AND i.ended_at > s.starts_at
    CROSS JOIN LATERAL interval_meters(extract(epoch FROM least(i.ended_at, s.ends_at)
        - greatest(i.started_at, s.starts_at)), i.container, i.cpu_milli, i.mem_bytes,
        i.storage_bytes) m
    GROUP BY i.tenant_id, s.starts_at, m.meter, i.bot_id
    ORDER BY i.tenant_id, s.starts_at, m.meter, i.bot_id
    ON CONFLICT (tenant_id, starts_at, meter, bot_id) DO UPDATE
    SET quantity = t.quantity + excluded.quantity;
    RETURN NULL;
END $$;
CREATE TRIGGER add_to_totals AFTER INSERT ON runtime_interval
    REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION add_intervals_to_totals();

-- An interval closes once, but a better end may replace a worse one: the difference counts.
CREATE FUNCTION change_intervals_in_totals() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM after c WHERE c.ended_at IS NOT NULL)
        AND NOT EXISTS (SELECT FROM before c WHERE c.ended_at IS NOT NULL)
    THEN
        RETURN NULL;
    END IF;
    PERFORM share_totals();
    INSERT INTO usage_total AS t (tenant_id, starts_at, meter, bot_id, quantity)
    SELECT i.tenant_id, s.starts_at, m.meter, i.bot_id, sum(i.sign * m.quantity)
    FROM (SELECT 1 AS sign, a.* FROM after a UNION ALL SELECT -1, b.* FROM before b) i
    JOIN usage_segment s ON s.tenant_id = i.tenant_id
        AND i.started_at < s.ends_at AND i.ended_at > s.starts_at
    CROSS JOIN LATERAL interval_meters(extract(epoch FROM least(i.ended_at, s.ends_at)
        - greatest(i.started_at, s.starts_at)), i.container, i.cpu_milli, i.mem_bytes,
        i.storage_bytes) m
    GROUP BY i.tenant_id, s.starts_at, m.meter, i.bot_id
    HAVING sum(i.sign * m.quantity) <> 0
    ORDER BY i.tenant_id, s.starts_at, m.meter, i.bot_id
    ON CONFLICT (tenant_id, starts_at, meter, bot_id) DO UPDATE
    SET quantity = t.quantity + excluded.quantity;
    RETURN NULL;
END $$;
CREATE TRIGGER change_in_totals AFTER UPDATE ON runtime_interval
    REFERENCING OLD TABLE AS before NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION change_intervals_in_totals();

-- A cut that is no longer one takes its totals with it; they are built again when asked for.
CREATE FUNCTION drop_segments(tenants uuid[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM hold_totals();
    DELETE FROM usage_total t WHERE t.tenant_id = ANY (tenants);
    DELETE FROM usage_segment s WHERE s.tenant_id = ANY (tenants);
END $$;

CREATE FUNCTION drop_segments_of_tenant() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM drop_segments(ARRAY[NEW.tenant_id]);
    RETURN NULL;
END $$;
CREATE TRIGGER drop_segments AFTER INSERT OR UPDATE ON subscription_phase
    FOR EACH ROW EXECUTE FUNCTION drop_segments_of_tenant();

CREATE FUNCTION drop_segments_of_plan() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM drop_segments(ARRAY(SELECT DISTINCT p.tenant_id FROM subscription_phase p
        WHERE p.plan = NEW.plan));
    RETURN NULL;
END $$;
CREATE TRIGGER drop_segments AFTER INSERT OR UPDATE ON plan_version
    FOR EACH ROW EXECUTE FUNCTION drop_segments_of_plan();

-- What the totals of some periods must be: read from intervals, whole hours and edges of hours.
-- Postgres may ask which intervals lie in a cut before it has seen that there is no such cut,
-- because its plan began after the period had ended.
CREATE FUNCTION segment_usage(tenants uuid[], periods text[])
RETURNS TABLE (tenant_id uuid, starts_at timestamptz, meter text, bot_id uuid, quantity numeric)
LANGUAGE sql STABLE AS $$
    SELECT m.tenant_id, m.starts_at, m.meter, m.bot_id, m.quantity
    FROM metered(tenants, periods, '-infinity') m
    UNION ALL
    SELECT c.tenant_id, c.starts_at, m.meter, i.bot_id, m.quantity
    FROM cut(tenants, periods) c
    JOIN runtime_interval i ON i.tenant_id = c.tenant_id AND i.ended_at IS NOT NULL
        AND tstzrange(i.started_at, i.ended_at)
            && tstzrange(c.starts_at, greatest(c.starts_at, c.ends_at))
    CROSS JOIN LATERAL interval_meters(extract(epoch FROM least(i.ended_at, c.ends_at)
        - greatest(i.started_at, c.starts_at)), i.container, i.cpu_milli, i.mem_bytes,
        i.storage_bytes) m
$$;

-- Make the segments of some periods and count everything that is there already.
CREATE FUNCTION build_segments(tenants uuid[], periods text[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM hold_totals();
    DELETE FROM usage_total t USING usage_segment s, unnest(tenants, periods) AS a (tenant, period)
    WHERE s.tenant_id = a.tenant AND s.period = a.period AND t.tenant_id = s.tenant_id
        AND t.starts_at = s.starts_at;
    DELETE FROM usage_segment s USING unnest(tenants, periods) AS a (tenant, period)
    WHERE s.tenant_id = a.tenant AND s.period = a.period;
    INSERT INTO usage_segment (tenant_id, starts_at, ends_at, period, period_starts_at,
        period_ends_at, plan, version, counted_from, counted_until)
    SELECT c.tenant_id, c.starts_at, c.ends_at, c.period, p.starts_at, p.ends_at, c.plan,
        c.version, c.counted_from, c.counted_until
    FROM cut(tenants, periods) c
    JOIN billing_period p ON p.tenant_id = c.tenant_id AND p.period = c.period;
    INSERT INTO usage_total (tenant_id, starts_at, meter, bot_id, quantity)
    SELECT u.tenant_id, u.starts_at, u.meter, u.bot_id, sum(u.quantity)
    FROM segment_usage(tenants, periods) u
    GROUP BY u.tenant_id, u.starts_at, u.meter, u.bot_id;
END $$;
