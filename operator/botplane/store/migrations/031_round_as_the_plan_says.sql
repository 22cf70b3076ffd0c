-- Where the law of a seller wants halves of a minor unit rounded up, a plan may say so.

ALTER TABLE plan_version ADD COLUMN rounding text NOT NULL DEFAULT 'half_even'
    CHECK (rounding IN ('half_even', 'half_up'));
COMMENT ON COLUMN plan_version.rounding IS
    'Of each line to the minor unit; half_up rounds halves away from zero.';

-- round() of Postgres rounds half away from zero.
CREATE FUNCTION round_by(rounding text, x numeric) RETURNS numeric
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN rounding = 'half_up' THEN round(x)
        WHEN abs(x - trunc(x)) = 0.5 THEN 2 * round(x / 2) ELSE round(x) END
$$;

-- As before; cuts that share a count, whose numbers are below zero, are rated from where the ones
-- before them stopped, and each line is rounded as its plan version says, a commitment as the last
-- one of its period.
CREATE OR REPLACE FUNCTION charge_plan(tenants uuid[], periods text[], until timestamptz,
    within tstzrange)
RETURNS TABLE (tenant_id uuid, period text, line_key text, kind text, meter text,
    starts_at timestamptz, ends_at timestamptz, quantity numeric, exact numeric,
    amount_minor bigint, detail jsonb)
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    WITH c AS MATERIALIZED (
        SELECT row_number() OVER () * CASE WHEN c.is_alone THEN 1 ELSE -1 END AS n, c.*,
            v.fee_minor, v.minimum_commitment_minor, v.rounding,
            power(10::numeric, u.minor_units) AS minors, '/' || to_char(
                c.starts_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS suffix,
            date_bin('1 hour', c.starts_at + interval '3599 seconds', '2000-01-01 00:00+00')
                AS first_hour,
            date_bin('1 hour', c.ends_at, '2000-01-01 00:00+00') AS end_hour,
            CASE WHEN c.is_alone THEN c.seconds
                ELSE extract(epoch FROM c.counted_until - c.counted_from) END AS counted_seconds
        FROM cut(tenants, periods) c
        JOIN plan_version v ON v.plan = c.plan AND v.version = c.version
        JOIN plan p ON p.plan = c.plan
        JOIN currency u ON u.currency = p.currency
    ),
    book AS MATERIALIZED (
        SELECT p.plan, p.version, p.meter, p.model, p.included::numeric AS included,
            p.unit_size::numeric AS unit_size, trim_scale(p.unit_size)::text AS size, k.tiers,
            k.lo, k.hi, k.unit_price, trim_scale(k.unit_price)::text AS price, k.flat_minor
        FROM price p
        JOIN (SELECT t.plan, t.version, t.meter, count(*) AS tiers, min(t.lo)::numeric AS lo,
                max(t.hi)::numeric AS hi, min(t.unit_price)::numeric AS unit_price,
                min(t.flat_fee_minor)::bigint AS flat_minor
            FROM price_tier t GROUP BY t.plan, t.version, t.meter) AS k
            ON k.plan = p.plan AND k.version = p.version AND k.meter = p.meter
    ),
    turn AS MATERIALIZED (
        SELECT array_agg(DISTINCT t.hour ORDER BY t.hour) AS hours
        FROM (SELECT first_hour FROM c UNION ALL SELECT end_hour FROM c) AS t (hour)
    ),
    hourly AS MATERIALIZED (
        SELECT u.tenant_id, u.meter, 1 AS bucket, sum(u.quantity) AS quantity
        FROM usage_hourly u
        WHERE (SELECT t.hours = ARRAY[lower(within), upper(within)] FROM turn t)
            AND u.tenant_id = ANY(tenants) AND u.hour >= lower(within) AND u.hour < upper(within)
        GROUP BY u.tenant_id, u.meter
        UNION ALL
        SELECT u.tenant_id, u.meter, width_bucket(u.hour, (SELECT hours FROM turn)) AS bucket,
            sum(u.quantity) AS quantity
        FROM usage_hourly u
        WHERE (SELECT t.hours <> ARRAY[lower(within), upper(within)] FROM turn t)
            AND u.tenant_id = ANY(tenants) AND u.hour >= lower(within) AND u.hour < upper(within)
        GROUP BY u.tenant_id, u.meter, bucket
    ),
    ran AS (
        SELECT c.n,
            sum(s.seconds) FILTER (WHERE i.container = 'bot') AS bot_seconds,
            sum(s.seconds * i.cpu_milli) * 0.001 AS cpu_core_seconds,
            sum(s.seconds * i.mem_bytes) * 0.000000000931322574615478515625 AS memory_gib_seconds,
            gb_hours(sum(s.seconds * i.storage_bytes)) AS storage_gb_hours
        FROM c
        JOIN runtime_interval i ON i.tenant_id = c.tenant_id
            AND tstzrange(i.started_at, i.ended_at)
                && tstzrange(c.starts_at, greatest(c.starts_at, least(c.ends_at, until)))
        CROSS JOIN LATERAL (SELECT extract(epoch FROM least(i.ended_at, c.ends_at, until)
            - greatest(i.started_at, c.starts_at)) AS seconds OFFSET 0) AS s
        GROUP BY c.n
    ),
    part AS (
        SELECT r.n, v.meter, v.quantity
        FROM ran r
        CROSS JOIN LATERAL (VALUES ('bot_seconds', r.bot_seconds),
            ('cpu_core_seconds', r.cpu_core_seconds),
            ('memory_gib_seconds', r.memory_gib_seconds),
            ('storage_gb_hours', r.storage_gb_hours)) AS v (meter, quantity)
        WHERE v.quantity > 0
        UNION ALL
        SELECT c.n, h.meter, h.quantity
        FROM c CROSS JOIN turn
        JOIN hourly h ON h.tenant_id = c.tenant_id
            AND h.bucket >= width_bucket(c.first_hour, turn.hours)
            AND h.bucket < width_bucket(c.end_hour, turn.hours)
        UNION ALL
        SELECT c.n, e.meter, e.quantity
        FROM c
        CROSS JOIN LATERAL (VALUES (c.starts_at, least(c.ends_at, c.first_hour)),
            (greatest(c.first_hour, c.end_hour), c.ends_at)) AS b (lo, hi)
        CROSS JOIN LATERAL (SELECT u.meter, u.quantity FROM usage_event u
            WHERE u.tenant_id = c.tenant_id AND u.occurred_at >= b.lo AND u.occurred_at < b.hi
            OFFSET 0) AS e
        WHERE b.lo < b.hi
    ),
    used AS MATERIALIZED (
        SELECT p.n, p.meter, billed_quantity(sum(p.quantity)) AS quantity
        FROM part p GROUP BY p.n, p.meter HAVING sum(p.quantity) > 0
    ),
    counted AS (
        SELECT u.n, u.meter, u.quantity, NULL::numeric AS before, NULL::numeric AS whole
        FROM used u WHERE u.n > 0
        UNION ALL
        SELECT s.n, s.meter, s.quantity, s.before, s.whole
        FROM (
            SELECT c.n, u.meter, sum(u.quantity) FILTER (WHERE o.n = c.n) AS quantity,
                COALESCE(sum(u.quantity) FILTER (WHERE o.starts_at < c.starts_at), 0) AS before,
                sum(u.quantity) AS whole
            FROM c
            JOIN c o ON o.tenant_id = c.tenant_id AND o.starts_at >= c.counted_from
                AND o.starts_at < c.counted_until
            JOIN used u ON u.n = o.n
            WHERE c.n < 0
            GROUP BY c.n, u.meter
        ) AS s
        WHERE s.quantity > 0
    ),
    usage_line AS (
        SELECT c.*, p.meter, u.quantity, p.model, p.size, i.included, u.before,
            b.high - b.low AS billable,
            CASE WHEN p.tiers > 1 THEN m.tiers WHEN o.units IS NOT NULL THEN jsonb_build_array(
                jsonb_build_object('quantity', trim_scale(o.units)::text, 'unitPrice', p.price,
                    'flatFeeMinor', o.flat_minor)) END AS tiers,
            divide(
                COALESCE(m.units, o.units * p.unit_price, 0) * c.minors * c.period_seconds
                    + CASE WHEN p.tiers > 1 THEN m.flat_minor ELSE o.flat_minor END
                    * c.counted_seconds * p.unit_size,
                c.minors * c.period_seconds * p.unit_size) AS exact
        FROM counted u
        JOIN c ON c.n = u.n
        JOIN book p ON p.plan = c.plan AND p.version = c.version AND p.meter = u.meter
        CROSS JOIN LATERAL (SELECT CASE WHEN c.counted_seconds = c.period_seconds THEN p.included
            ELSE div(p.included * c.counted_seconds * 1000000000000, c.period_seconds)
                * 0.000000000001 END AS included OFFSET 0) AS i
        CROSS JOIN LATERAL (SELECT
            CASE WHEN u.n > 0 THEN 0 ELSE greatest(u.before - i.included, 0) END AS low,
            greatest(CASE WHEN u.n > 0 THEN u.quantity ELSE u.before + u.quantity END
                - i.included, 0) AS high OFFSET 0) AS b
        CROSS JOIN LATERAL (SELECT
            CASE WHEN p.tiers > 1 OR b.high <= p.lo THEN NULL
                WHEN b.low = 0 THEN units_of_tier(p.model, p.unit_size, b.high, p.lo, p.hi)
                WHEN p.model <> 'flat' THEN
                    NULLIF(units_of_tier(p.model, p.unit_size, b.high, p.lo, p.hi)
                        - units_of_tier(p.model, p.unit_size, b.low, p.lo, p.hi), 0) END AS units,
            CASE WHEN b.low = 0 AND b.high > 0 THEN p.flat_minor ELSE 0 END AS flat_minor
            OFFSET 0) AS o
        LEFT JOIN LATERAL (
            SELECT sum(w.units * t.unit_price) AS units,
                COALESCE(sum(t.flat_fee_minor) FILTER (WHERE w.is_entered), 0) AS flat_minor,
                jsonb_agg(jsonb_build_object('quantity', trim_scale(w.units)::text,
                    'unitPrice', trim_scale(t.unit_price)::text,
                    'flatFeeMinor', CASE WHEN w.is_entered THEN t.flat_fee_minor ELSE 0 END)
                    ORDER BY t.lo) AS tiers
            FROM price_tier t
            CROSS JOIN LATERAL part_of_tier(p.model, p.unit_size, b.low, b.high,
                greatest(COALESCE(u.whole, u.quantity) - i.included, 0), t.lo, t.hi) AS w
            WHERE p.tiers > 1 AND t.plan = p.plan AND t.version = p.version AND t.meter = p.meter
        ) AS m ON true
    ),
    line AS (
        SELECT c.tenant_id, c.period, 'subscription' || c.suffix AS line_key,
            'subscription' AS kind, NULL::text AS meter, c.starts_at, c.ends_at,
            1::numeric AS quantity, c.minors, c.rounding,
            divide(c.fee_minor * c.seconds, c.minors * c.period_seconds) AS exact,
            jsonb_build_object('plan', c.plan, 'version', c.version, 'feeMinor', c.fee_minor,
                'seconds', trim_scale(c.seconds)::text,
                'periodSeconds', trim_scale(c.period_seconds)::text) AS detail
        FROM c
        UNION ALL
        SELECT u.tenant_id, u.period, 'usage/' || u.meter || u.suffix, 'usage', u.meter,
            u.starts_at, u.ends_at, u.quantity, u.minors, u.rounding, u.exact,
            CASE WHEN u.before > 0 THEN d.detail
                || jsonb_build_object('usedBefore', trim_scale(u.before)::text)
                ELSE d.detail END
        FROM usage_line u
        CROSS JOIN LATERAL (SELECT jsonb_build_object('plan', u.plan, 'version', u.version,
            'model', u.model,
            'included', trim_scale(u.included)::text,
            'billable', trim_scale(u.billable)::text,
            'unitSize', u.size,
            'tiers', COALESCE(u.tiers, '[]')) AS detail OFFSET 0) AS d
    ),
    rounded AS MATERIALIZED (
        SELECT l.*, round_by(l.rounding, l.exact * l.minors)::bigint AS amount_minor FROM line l
    ),
    commitment AS (
        SELECT c.tenant_id, c.period, min(c.starts_at) AS starts_at, max(c.ends_at) AS ends_at,
            (array_agg(c.rounding ORDER BY c.starts_at DESC))[1] AS rounding, c.minors,
            divide(sum(c.minimum_commitment_minor * c.seconds), c.minors * c.period_seconds) AS least
        FROM c GROUP BY c.tenant_id, c.period, c.minors, c.period_seconds
        HAVING sum(c.minimum_commitment_minor) > 0
    ),
    committed AS (
        SELECT r.tenant_id, r.period, sum(r.amount_minor) AS minor
        FROM rounded r WHERE r.kind = 'usage' GROUP BY r.tenant_id, r.period
    ),
    topped_up AS (
        SELECT k.*, k.least - COALESCE(d.minor, 0) / k.minors AS exact
        FROM commitment k
        LEFT JOIN committed d ON d.tenant_id = k.tenant_id AND d.period = k.period
    )
    SELECT r.tenant_id, r.period, r.line_key, r.kind, r.meter, r.starts_at, r.ends_at, r.quantity,
        r.exact, r.amount_minor, CASE r.rounding WHEN 'half_even' THEN r.detail
            ELSE r.detail || jsonb_build_object('rounding', r.rounding) END
    FROM rounded r
    UNION ALL
    SELECT k.tenant_id, k.period, 'commitment', 'commitment', NULL, k.starts_at, k.ends_at, 1,
        k.exact, round_by(k.rounding, k.exact * k.minors)::bigint,
        jsonb_build_object('minimum', trim_scale(k.least)::text) || CASE k.rounding
            WHEN 'half_even' THEN '{}' ELSE jsonb_build_object('rounding', k.rounding) END
    FROM topped_up k WHERE k.exact > 0
$$;

-- charge_commission rounds by it in the next migration, where losses count too.
