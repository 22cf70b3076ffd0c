-- Volumes are metered as pods are: a claim is a pod whose only run is of its volume, from when it
-- was bound until it was asked to go, cut where its capacity changed.

ALTER TABLE runtime_interval
    ADD COLUMN storage_bytes bigint NOT NULL DEFAULT 0 CHECK (storage_bytes >= 0);
COMMENT ON TABLE runtime_interval IS
    'One run of one container, or a bound volume at one size; in whole seconds; open: no end.';
COMMENT ON COLUMN runtime_interval.pod_uid IS 'Uid of the pod, or of the claim of a volume.';
COMMENT ON COLUMN runtime_interval.storage_bytes IS 'Capacity of a volume; 0 for a container.';

ALTER TABLE pod ADD COLUMN kind text NOT NULL DEFAULT 'Pod'
    CHECK (kind IN ('Pod', 'PersistentVolumeClaim'));
COMMENT ON TABLE pod IS 'What is metered: pods, and claims of volumes.';

ALTER TABLE meter DROP CONSTRAINT meter_source_check;
ALTER TABLE meter ADD CHECK (source IN ('interval', 'event', 'both'));
UPDATE meter SET source = 'both' WHERE meter = 'storage_gb_hours';

-- GB are 10^9 bytes. 40 decimals: a sum of many, rounded to 30, is right to the 12 that are billed.
CREATE FUNCTION gb_hours(byte_seconds numeric) RETURNS numeric
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT div(byte_seconds * 10000000000000000000000000000000000000000, 3600000000000)
        * 0.0000000000000000000000000000000000000001
$$;

-- A sum as the domain quantity holds it: what is beyond 12 decimals is not billed.
CREATE FUNCTION billed_quantity(total numeric) RETURNS numeric
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT trunc(round(total, 30), 12)
$$;

-- What one interval adds to a segment, by meter.
DROP FUNCTION interval_meters(numeric, text, integer, bigint);
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

-- The rest is as before, with volumes.

CREATE OR REPLACE FUNCTION add_intervals_to_totals() RETURNS trigger LANGUAGE plpgsql AS $$
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

CREATE OR REPLACE FUNCTION change_intervals_in_totals() RETURNS trigger LANGUAGE plpgsql AS $$
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

CREATE OR REPLACE FUNCTION segment_usage(tenants uuid[], periods text[])
RETURNS TABLE (tenant_id uuid, starts_at timestamptz, meter text, bot_id uuid, quantity numeric)
LANGUAGE sql STABLE AS $$
    SELECT m.tenant_id, m.starts_at, m.meter, m.bot_id, m.quantity
    FROM metered(tenants, periods, '-infinity') m
    UNION ALL
    SELECT c.tenant_id, c.starts_at, m.meter, i.bot_id, m.quantity
    FROM cut(tenants, periods) c
    JOIN runtime_interval i ON i.tenant_id = c.tenant_id AND i.ended_at IS NOT NULL
        AND tstzrange(i.started_at, i.ended_at) && tstzrange(c.starts_at, c.ends_at)
    CROSS JOIN LATERAL interval_meters(extract(epoch FROM least(i.ended_at, c.ends_at)
        - greatest(i.started_at, c.starts_at)), i.container, i.cpu_milli, i.mem_bytes,
        i.storage_bytes) m
$$;

CREATE OR REPLACE FUNCTION metered(tenants uuid[], periods text[], until timestamptz)
RETURNS TABLE (tenant_id uuid, period text, starts_at timestamptz, bot_id uuid, meter text,
    quantity numeric)
LANGUAGE sql STABLE AS $$
    WITH c AS (SELECT * FROM cut(tenants, periods)),
    runs AS (
        SELECT c.tenant_id, c.period, c.starts_at, i.bot_id, i.container, i.cpu_milli, i.mem_bytes,
            i.storage_bytes,
            extract(epoch FROM least(i.ended_at, c.ends_at, until)
                - greatest(i.started_at, c.starts_at)) AS seconds
        FROM c JOIN runtime_interval i ON i.tenant_id = c.tenant_id
            AND tstzrange(i.started_at, i.ended_at)
                && tstzrange(c.starts_at, greatest(c.starts_at, least(c.ends_at, until)))
    ),
    interval_meters AS (
        SELECT r.tenant_id, r.period, r.starts_at, r.bot_id,
            sum(r.seconds) FILTER (WHERE r.container = 'bot') AS bot_seconds,
            sum(r.seconds * r.cpu_milli) * 0.001 AS cpu_core_seconds,
            sum(r.seconds * r.mem_bytes) * 0.000000000931322574615478515625 AS memory_gib_seconds,
            gb_hours(sum(r.seconds * r.storage_bytes)) AS storage_gb_hours
        FROM runs r GROUP BY r.tenant_id, r.period, r.starts_at, r.bot_id
    ),
    edges AS (
        SELECT c.tenant_id, c.period, c.starts_at, e.lo, e.hi
        FROM c
        CROSS JOIN LATERAL (SELECT
            date_bin('1 hour', c.starts_at + interval '3599 seconds', '2000-01-01 00:00+00') AS up,
            date_bin('1 hour', c.ends_at, '2000-01-01 00:00+00') AS down) AS h
        CROSS JOIN LATERAL (VALUES (c.starts_at, least(c.ends_at, h.up)),
            (greatest(h.up, h.down), c.ends_at)) AS e (lo, hi)
        WHERE e.lo < e.hi
    )
    SELECT m.tenant_id, m.period, m.starts_at, m.bot_id, v.meter, v.quantity
    FROM interval_meters m
    CROSS JOIN LATERAL (VALUES ('bot_seconds', m.bot_seconds),
        ('cpu_core_seconds', m.cpu_core_seconds),
        ('memory_gib_seconds', m.memory_gib_seconds),
        ('storage_gb_hours', m.storage_gb_hours)) AS v (meter, quantity)
    WHERE v.quantity > 0
    UNION ALL
    SELECT c.tenant_id, c.period, c.starts_at, u.bot_id, u.meter, u.quantity
    FROM c JOIN usage_hourly u ON u.tenant_id = c.tenant_id
        AND u.hour >= c.starts_at AND u.hour <= c.ends_at - interval '1 hour'
    UNION ALL
    SELECT e.tenant_id, e.period, e.starts_at,
        COALESCE(u.bot_id, '00000000-0000-0000-0000-000000000000'), u.meter, u.quantity
    FROM edges e JOIN usage_event u ON u.tenant_id = e.tenant_id
        AND u.occurred_at >= e.lo AND u.occurred_at < e.hi
$$;

CREATE OR REPLACE FUNCTION used(tenants uuid[], periods text[], until timestamptz, within tstzrange)
RETURNS TABLE (tenant_id uuid, period text, starts_at timestamptz, meter text, quantity numeric)
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    WITH c AS MATERIALIZED (
        SELECT c.tenant_id, c.period, c.starts_at, c.ends_at, h.first_hour, h.end_hour
        FROM cut(tenants, periods) c
        CROSS JOIN LATERAL (SELECT
            date_bin('1 hour', c.starts_at + interval '3599 seconds', '2000-01-01 00:00+00')
                AS first_hour,
            date_bin('1 hour', c.ends_at, '2000-01-01 00:00+00') AS end_hour) AS h
    ),
    turn AS MATERIALIZED (
        SELECT array_agg(DISTINCT t.hour ORDER BY t.hour) AS hours
        FROM (SELECT first_hour FROM c UNION ALL SELECT end_hour FROM c) AS t (hour)
    ),
    hourly AS MATERIALIZED (
        SELECT u.tenant_id, u.meter, width_bucket(u.hour, (SELECT hours FROM turn)) AS bucket,
            sum(u.quantity) AS quantity
        FROM usage_hourly u
        WHERE u.tenant_id = ANY(tenants) AND u.hour >= lower(within) AND u.hour < upper(within)
        GROUP BY u.tenant_id, u.meter, bucket
    ),
    ran AS (
        SELECT c.tenant_id, c.period, c.starts_at,
            sum(s.seconds) FILTER (WHERE i.container = 'bot') AS bot_seconds,
            sum(s.seconds * i.cpu_milli) * 0.001 AS cpu_core_seconds,
            sum(s.seconds * i.mem_bytes) * 0.000000000931322574615478515625 AS memory_gib_seconds,
            gb_hours(sum(s.seconds * i.storage_bytes)) AS storage_gb_hours
        FROM c
        JOIN runtime_interval i ON i.tenant_id = c.tenant_id
            AND tstzrange(i.started_at, i.ended_at)
                && tstzrange(c.starts_at, greatest(c.starts_at, least(c.ends_at, until)))
        CROSS JOIN LATERAL (SELECT extract(epoch FROM least(i.ended_at, c.ends_at, until)
            - greatest(i.started_at, c.starts_at)) AS seconds) AS s
        GROUP BY c.tenant_id, c.period, c.starts_at
    ),
    part AS (
        SELECT r.tenant_id, r.period, r.starts_at, v.meter, v.quantity
        FROM ran r
        CROSS JOIN LATERAL (VALUES ('bot_seconds', r.bot_seconds),
            ('cpu_core_seconds', r.cpu_core_seconds),
            ('memory_gib_seconds', r.memory_gib_seconds),
            ('storage_gb_hours', r.storage_gb_hours)) AS v (meter, quantity)
        WHERE v.quantity > 0
        UNION ALL
        SELECT c.tenant_id, c.period, c.starts_at, h.meter, h.quantity
        FROM c CROSS JOIN turn
        JOIN hourly h ON h.tenant_id = c.tenant_id
            AND h.bucket >= width_bucket(c.first_hour, turn.hours)
            AND h.bucket < width_bucket(c.end_hour, turn.hours)
        UNION ALL
        SELECT c.tenant_id, c.period, c.starts_at, e.meter, e.quantity
        FROM c
        CROSS JOIN LATERAL (VALUES (c.starts_at, least(c.ends_at, c.first_hour)),
            (greatest(c.first_hour, c.end_hour), c.ends_at)) AS b (lo, hi)
        CROSS JOIN LATERAL (SELECT u.meter, u.quantity FROM usage_event u
            WHERE u.tenant_id = c.tenant_id AND u.occurred_at >= b.lo AND u.occurred_at < b.hi
            OFFSET 0) AS e
        WHERE b.lo < b.hi
    )
    SELECT p.tenant_id, p.period, p.starts_at, p.meter, billed_quantity(sum(p.quantity))
    FROM part p
    GROUP BY p.tenant_id, p.period, p.starts_at, p.meter
    HAVING sum(p.quantity) > 0
$$;

CREATE OR REPLACE FUNCTION runtime_interval_late() RETURNS trigger LANGUAGE plpgsql AS $$
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

DROP TRIGGER runtime_interval_updated ON runtime_interval;
CREATE TRIGGER runtime_interval_updated AFTER UPDATE ON runtime_interval
    FOR EACH ROW WHEN (
        (OLD.started_at, OLD.ended_at, OLD.cpu_milli, OLD.mem_bytes, OLD.storage_bytes)
        IS DISTINCT FROM
        (NEW.started_at, NEW.ended_at, NEW.cpu_milli, NEW.mem_bytes, NEW.storage_bytes))
    EXECUTE FUNCTION runtime_interval_late();

-- CREATE OR REPLACE forgets the owner's rights of 013.
ALTER FUNCTION add_intervals_to_totals() SECURITY DEFINER SET search_path FROM CURRENT;
ALTER FUNCTION change_intervals_in_totals() SECURITY DEFINER SET search_path FROM CURRENT;
