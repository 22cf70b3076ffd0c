-- What was used: intervals of containers and usage events; and what it costs.

CREATE TABLE source_watermark (
    source text PRIMARY KEY,
    complete_until timestamptz NOT NULL,
    beat_at timestamptz NOT NULL
);
COMMENT ON TABLE source_watermark IS
    'Everything before complete_until is here. A period is billed when every source has passed it.';

CREATE TABLE runtime_interval (
    tenant_id uuid NOT NULL,
    pod_uid uuid NOT NULL,
    container text NOT NULL,
    restart integer NOT NULL CHECK (restart >= 0),
    seg integer NOT NULL DEFAULT 0 CHECK (seg >= 0),
    bot_id uuid NOT NULL,
    node text,
    started_at timestamptz(0) NOT NULL,
    ended_at timestamptz(0),
    last_seen_at timestamptz NOT NULL,
    cpu_milli integer NOT NULL CHECK (cpu_milli >= 0),
    mem_bytes bigint NOT NULL CHECK (mem_bytes >= 0),
    close_reason text CHECK (close_reason IN ('terminated', 'restarted', 'resized', 'pod_gone',
        'node_lost', 'reconciled')),
    close_quality text CHECK (close_quality IN ('exact', 'bounded', 'estimated')),
    PRIMARY KEY (tenant_id, pod_uid, container, restart, seg),
    CHECK (ended_at >= started_at),
    CHECK ((ended_at IS NULL) = (close_reason IS NULL)),
    CHECK ((ended_at IS NULL) = (close_quality IS NULL)),
    EXCLUDE USING gist (tenant_id WITH =, pod_uid WITH =, container WITH =,
        tstzrange(started_at, ended_at) WITH &&)
);
COMMENT ON TABLE runtime_interval IS 'One run of one container, in whole seconds; open: no end.';
COMMENT ON COLUMN runtime_interval.seg IS 'Counts up when resources change within one run.';
COMMENT ON COLUMN runtime_interval.cpu_milli IS 'Requested, in thousandths of a core.';
CREATE INDEX runtime_interval_open ON runtime_interval (last_seen_at) WHERE ended_at IS NULL;
CREATE INDEX runtime_interval_during ON runtime_interval
    USING gist (tenant_id, tstzrange(started_at, ended_at));

CREATE TABLE meter_gap (
    tenant_id uuid NOT NULL,
    pod_uid uuid NOT NULL,
    container text NOT NULL,
    starts_at timestamptz NOT NULL,
    ends_at timestamptz NOT NULL,
    reason text NOT NULL,
    PRIMARY KEY (tenant_id, pod_uid, container, starts_at),
    CHECK (ends_at >= starts_at)
);
COMMENT ON TABLE meter_gap IS 'Time that may have been used and is not billed: the upper bound.';

CREATE TABLE usage_event (
    tenant_id uuid NOT NULL,
    source text NOT NULL,
    event_id text NOT NULL,
    meter text NOT NULL,
    bot_id uuid,
    occurred_at timestamptz NOT NULL,
    received_at timestamptz NOT NULL,
    quantity quantity NOT NULL,
    dims jsonb NOT NULL DEFAULT '{}'
) PARTITION BY RANGE (occurred_at);
CREATE INDEX usage_event_occurred ON usage_event (tenant_id, meter, occurred_at);

-- A unique key cannot span the months of usage_event: this table is the truth of «seen before».
CREATE TABLE usage_event_key (
    tenant_id uuid NOT NULL,
    source text NOT NULL,
    event_id text NOT NULL,
    occurred_at timestamptz NOT NULL,
    body_hash bytea NOT NULL,
    PRIMARY KEY (tenant_id, source, event_id)
) PARTITION BY HASH (tenant_id);

CREATE TABLE usage_hourly (
    tenant_id uuid NOT NULL,
    meter text NOT NULL,
    hour timestamptz(0) NOT NULL,
    bot_id uuid NOT NULL,
    dims jsonb NOT NULL DEFAULT '{}',
    quantity quantity NOT NULL,
    events bigint NOT NULL CHECK (events > 0),
    PRIMARY KEY (tenant_id, meter, hour, bot_id, dims),
    CHECK (hour = date_bin('1 hour', hour, '2000-01-01 00:00+00'))
) PARTITION BY RANGE (hour);
COMMENT ON TABLE usage_hourly IS
    'Sums of usage_event by UTC hour, written with it; bot_id of all zeros: no bot.';

CREATE TABLE usage_event_default PARTITION OF usage_event DEFAULT;
CREATE TABLE usage_hourly_default PARTITION OF usage_hourly DEFAULT;

-- Make the month partitions that touch [from_day, to_day); rows that came too early move along.
-- Existence is read from pg_class: to_regclass() may remember from before the lock that there is
-- none.
CREATE FUNCTION ensure_partitions(from_day date, to_day date) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    made integer := 0;
    month timestamp := date_trunc('month', from_day);
    parent record;
    child text;
    bounds text[];
BEGIN
    WHILE month < to_day LOOP
        bounds := ARRAY[month::text || '+00', (month + interval '1 month')::text || '+00'];
        FOR parent IN SELECT * FROM (VALUES ('usage_event', 'occurred_at'),
            ('usage_hourly', 'hour')) AS p (name, key)
        LOOP
            child := parent.name || '_' || to_char(month, 'YYYYMM');
            CONTINUE WHEN EXISTS (SELECT FROM pg_class c WHERE c.relname = child);
            PERFORM pg_advisory_xact_lock(hashtextextended('ensure_partitions', 0));
            CONTINUE WHEN EXISTS (SELECT FROM pg_class c WHERE c.relname = child);
            EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL)', child, parent.name);
            EXECUTE format('WITH early AS (DELETE FROM %I WHERE %I >= %L AND %I < %L RETURNING *)
                INSERT INTO %I SELECT * FROM early', parent.name || '_default',
                parent.key, bounds[1], parent.key, bounds[2], child);
            EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                parent.name, child, bounds[1], bounds[2]);
            made := made + 1;
        END LOOP;
        month := month + interval '1 month';
    END LOOP;
    RETURN made;
END $$;

DO $$
BEGIN
    FOR i IN 0..7 LOOP
        EXECUTE format('CREATE TABLE usage_event_key_%s PARTITION OF usage_event_key
            FOR VALUES WITH (MODULUS 8, REMAINDER %s)', i, i);
    END LOOP;
    PERFORM ensure_partitions((now() - interval '1 month')::date,
        (now() + interval '3 months')::date);
END $$;

-- Price at the time of usage: a period is cut where the plan, or a price of it, changes.
CREATE FUNCTION cut(tenants uuid[], periods text[])
RETURNS TABLE (tenant_id uuid, period text, period_seconds numeric, plan text, version integer,
    starts_at timestamptz, ends_at timestamptz, seconds numeric)
LANGUAGE sql STABLE AS $$
    SELECT p.tenant_id, p.period, extract(epoch FROM p.ends_at - p.starts_at), s.plan, v.version,
        lower(during), upper(during), extract(epoch FROM upper(during) - lower(during))
    FROM unnest(tenants, periods) AS asked (tenant_id, period)
    JOIN billing_period p ON p.tenant_id = asked.tenant_id AND p.period = asked.period
    JOIN subscription_phase s ON s.tenant_id = p.tenant_id
    JOIN plan_version v ON v.plan = s.plan
    CROSS JOIN LATERAL (SELECT tstzrange(p.starts_at, p.ends_at)
        * tstzrange(s.starts_at, s.ends_at) * v.effective AS during) AS c
    WHERE NOT isempty(during)
$$;

-- What each bot used in each cut, up to a moment. Whole hours of events come from their sums;
-- an hour that a cut divides (a plan change, a zone with half an hour) from the events themselves.
CREATE FUNCTION metered(tenants uuid[], periods text[], until timestamptz)
RETURNS TABLE (tenant_id uuid, period text, starts_at timestamptz, bot_id uuid, meter text,
    quantity numeric)
LANGUAGE sql STABLE AS $$
    WITH c AS (SELECT * FROM cut(tenants, periods)),
    runs AS (
        SELECT c.tenant_id, c.period, c.starts_at, i.bot_id, i.container, i.cpu_milli, i.mem_bytes,
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
            sum(r.seconds * r.mem_bytes) * 0.000000000931322574615478515625 AS memory_gib_seconds
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
        ('memory_gib_seconds', m.memory_gib_seconds)) AS v (meter, quantity)
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

-- The lines of an invoice. Each amount is one exact quotient, rounded once to the minor unit.
-- What is per period (fee, included quantity, flat fees, commitment) counts by the seconds of its
-- cut; tiers start anew in each cut.
CREATE FUNCTION charge(tenants uuid[], periods text[], until timestamptz)
RETURNS TABLE (tenant_id uuid, period text, line_key text, kind text, meter text,
    starts_at timestamptz, ends_at timestamptz, quantity numeric, exact numeric,
    amount_minor bigint, detail jsonb)
LANGUAGE sql STABLE AS $$
    WITH c AS (
        SELECT c.*, v.fee_minor, v.minimum_commitment_minor,
            power(10::numeric, u.minor_units) AS minors, '/' || to_char(
                c.starts_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS suffix
        FROM cut(tenants, periods) c
        JOIN plan_version v ON v.plan = c.plan AND v.version = c.version
        JOIN plan p ON p.plan = c.plan
        JOIN currency u ON u.currency = p.currency
    ),
    used AS (
        SELECT m.tenant_id, m.period, m.starts_at, m.meter, trunc(sum(m.quantity), 12) AS quantity
        FROM metered(tenants, periods, until) m
        GROUP BY m.tenant_id, m.period, m.starts_at, m.meter
        HAVING sum(m.quantity) > 0
    ),
    usage_line AS (
        SELECT c.*, used.meter, used.quantity, p.model, p.unit_size, b.included, b.billable,
            t.tiers, divide(
                t.units * c.minors * c.period_seconds + t.flat_minor * c.seconds * p.unit_size,
                c.minors * c.period_seconds * p.unit_size) AS exact
        FROM used
        JOIN c ON c.tenant_id = used.tenant_id AND c.period = used.period
            AND c.starts_at = used.starts_at
        JOIN price p ON p.plan = c.plan AND p.version = c.version AND p.meter = used.meter
        CROSS JOIN LATERAL (SELECT div(p.included * c.seconds * 1000000000000, c.period_seconds)
            * 0.000000000001 AS included) AS i
        CROSS JOIN LATERAL (SELECT i.included,
            greatest(used.quantity - i.included, 0) AS billable) AS b
        CROSS JOIN LATERAL (
            SELECT COALESCE(sum(w.units * t.unit_price), 0) AS units,
                COALESCE(sum(t.flat_fee_minor), 0) AS flat_minor,
                jsonb_agg(jsonb_build_object('quantity', trim_scale(w.units)::text,
                    'unitPrice', trim_scale(t.unit_price)::text, 'flatFeeMinor', t.flat_fee_minor)
                    ORDER BY t.lo) AS tiers
            FROM price_tier t
            CROSS JOIN LATERAL (SELECT CASE p.model
                WHEN 'flat' THEN 0
                WHEN 'package' THEN p.unit_size
                    * (div(b.billable, p.unit_size) + sign(mod(b.billable, p.unit_size)))
                WHEN 'graduated' THEN least(b.billable, t.hi) - t.lo
                ELSE b.billable END AS units) AS w
            WHERE t.plan = p.plan AND t.version = p.version AND t.meter = p.meter
                AND b.billable > t.lo AND (p.model <> 'volume' OR b.billable <= t.hi OR t.hi IS NULL)
        ) AS t
    ),
    line AS (
        SELECT c.tenant_id, c.period, 'subscription' || c.suffix AS line_key,
            'subscription' AS kind, NULL::text AS meter, c.starts_at, c.ends_at,
            1::numeric AS quantity, c.minors,
            divide(c.fee_minor * c.seconds, c.minors * c.period_seconds) AS exact,
            jsonb_build_object('plan', c.plan, 'version', c.version, 'feeMinor', c.fee_minor,
                'seconds', trim_scale(c.seconds)::text,
                'periodSeconds', trim_scale(c.period_seconds)::text) AS detail
        FROM c
        UNION ALL
        SELECT u.tenant_id, u.period, 'usage/' || u.meter || u.suffix, 'usage', u.meter,
            u.starts_at, u.ends_at, u.quantity, u.minors, u.exact,
            jsonb_build_object('plan', u.plan, 'version', u.version, 'model', u.model,
                'included', trim_scale(u.included)::text,
                'billable', trim_scale(u.billable)::text,
                'unitSize', trim_scale(u.unit_size)::text,
                'tiers', COALESCE(u.tiers, '[]'))
        FROM usage_line u
    ),
    rounded AS (
        SELECT l.*, half_even(l.exact * l.minors)::bigint AS amount_minor FROM line l
    ),
    commitment AS (
        SELECT c.tenant_id, c.period, min(c.starts_at) AS starts_at, max(c.ends_at) AS ends_at,
            c.minors, divide(sum(c.minimum_commitment_minor * c.seconds),
                c.minors * c.period_seconds) AS least
        FROM c GROUP BY c.tenant_id, c.period, c.minors, c.period_seconds
        HAVING sum(c.minimum_commitment_minor) > 0
    ),
    topped_up AS (
        SELECT k.*, k.least - COALESCE((SELECT sum(r.amount_minor) FROM rounded r
            WHERE r.tenant_id = k.tenant_id AND r.period = k.period AND r.kind = 'usage'), 0)
            / k.minors AS exact
        FROM commitment k
    )
    SELECT r.tenant_id, r.period, r.line_key, r.kind, r.meter, r.starts_at, r.ends_at, r.quantity,
        r.exact, r.amount_minor, r.detail
    FROM rounded r
    UNION ALL
    SELECT k.tenant_id, k.period, 'commitment', 'commitment', NULL, k.starts_at, k.ends_at, 1,
        k.exact, half_even(k.exact * k.minors)::bigint,
        jsonb_build_object('minimum', trim_scale(k.least)::text)
    FROM topped_up k WHERE k.exact > 0
$$;
