-- Included quantities and tiers are counted over the whole time that a tenant is on one plan within a
-- period: a new revision of its prices goes on where the one before it stopped.

ALTER TABLE plan_version ADD COLUMN tier_scope text NOT NULL DEFAULT 'period'
    CHECK (tier_scope IN ('period', 'phase'));
COMMENT ON COLUMN plan_version.tier_scope IS
    'period: counted on over revisions of the plan; phase: each revision counts anew, by its seconds.';

-- What was billed by the old reading is corrected by the old reading.
ALTER TABLE billing_period ADD COLUMN counts_by_cut boolean NOT NULL DEFAULT true;
ALTER TABLE billing_period ALTER COLUMN counts_by_cut SET DEFAULT false;
UPDATE billing_period SET counts_by_cut = false WHERE state <> 'closed' AND revision = 0;
COMMENT ON COLUMN billing_period.counts_by_cut IS
    'Billed when every revision counted anew, whatever its tier_scope.';

-- As before, with the time over which a cut shares its counters, by its own version: the phase within
-- the period, or the cut alone.
DROP FUNCTION cut(uuid[], text[]);
CREATE FUNCTION cut(tenants uuid[], periods text[])
RETURNS TABLE (tenant_id uuid, period text, period_seconds numeric, plan text, version integer,
    starts_at timestamptz, ends_at timestamptz, seconds numeric, counted_from timestamptz,
    counted_until timestamptz, is_alone boolean)
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT p.tenant_id, p.period, extract(epoch FROM p.ends_at - p.starts_at), s.plan, v.version,
        c.starts_at, c.ends_at, extract(epoch FROM c.ends_at - c.starts_at), k.counted_from,
        k.counted_until, k.counted_from = c.starts_at AND k.counted_until = c.ends_at
    FROM billing_period p
    JOIN subscription_phase s ON s.tenant_id = p.tenant_id
    JOIN plan_version v ON v.plan = s.plan
    CROSS JOIN LATERAL (SELECT greatest(p.starts_at, s.starts_at, lower(v.effective)) AS starts_at,
        least(p.ends_at, s.ends_at, upper(v.effective)) AS ends_at) AS c
    CROSS JOIN LATERAL (SELECT v.tier_scope = 'phase' OR p.counts_by_cut AS is_own) AS o
    CROSS JOIN LATERAL (SELECT
        CASE WHEN o.is_own THEN c.starts_at ELSE greatest(p.starts_at, s.starts_at) END
            AS counted_from,
        CASE WHEN o.is_own THEN c.ends_at ELSE least(p.ends_at, s.ends_at) END AS counted_until)
        AS k
    WHERE p.tenant_id = ANY(tenants) AND p.period = ANY(periods)
        AND (p.tenant_id, p.period) IN (SELECT a.tenant_id, a.period
            FROM unnest(tenants, periods) AS a (tenant_id, period))
        AND c.starts_at < c.ends_at
$$;

-- What a billable quantity that goes from one count to another asks of a tier: units of its price, and
-- its flat fee if the tier is entered in between. No row: nothing. A tier of a volume price is that
-- of the whole count, and entered with the first unit.
CREATE FUNCTION part_of_tier(model text, unit_size numeric, low numeric, high numeric,
    whole numeric, lo numeric, hi numeric)
RETURNS TABLE (units numeric, is_entered boolean)
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT p.units, p.is_entered
    FROM (SELECT units_of_tier(model, unit_size, high, lo, hi)
            - greatest(units_of_tier(model, unit_size, low, lo, hi), 0) AS units,
            low <= CASE model WHEN 'volume' THEN 0 ELSE lo END AS is_entered OFFSET 0) AS p
    WHERE high > 0 AND (p.units > 0 OR p.is_entered) AND CASE model
        WHEN 'volume' THEN whole > lo AND (whole <= hi OR hi IS NULL) AND high > low
        ELSE high > lo END
$$;

-- As before: what a quantity of a meter costs in a cut, where `before` was used in the same count and
-- `whole` will be; `seconds` is the time of the count.
DROP FUNCTION rate_quantity(text, integer, text, numeric, numeric, numeric);
CREATE FUNCTION rate_quantity(of_plan text, of_version integer, of_meter text, used numeric,
    before numeric, whole numeric, seconds numeric, period_seconds numeric)
RETURNS TABLE (included numeric, billable numeric, exact numeric)
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT i.included, b.high - b.low, divide(
            m.units * l.minors * period_seconds + m.flat_minor * seconds * p.unit_size,
            l.minors * period_seconds * p.unit_size)
    FROM price p
    JOIN (SELECT l.plan, power(10::numeric, u.minor_units) AS minors
        FROM plan l JOIN currency u ON u.currency = l.currency OFFSET 0) AS l ON l.plan = p.plan
    CROSS JOIN LATERAL (SELECT div(p.included * seconds * 1000000000000, period_seconds)
        * 0.000000000001 AS included OFFSET 0) AS i
    CROSS JOIN LATERAL (SELECT greatest(before - i.included, 0) AS low,
        greatest(before + used - i.included, 0) AS high,
        greatest(whole - i.included, 0) AS whole OFFSET 0) AS b
    CROSS JOIN LATERAL (
        SELECT COALESCE(sum(w.units * t.unit_price), 0) AS units,
            COALESCE(sum(t.flat_fee_minor) FILTER (WHERE w.is_entered), 0) AS flat_minor
        FROM price_tier t
        CROSS JOIN LATERAL part_of_tier(p.model, p.unit_size, b.low, b.high, b.whole, t.lo, t.hi)
            AS w
        WHERE t.plan = p.plan AND t.version = p.version AND t.meter = p.meter
    ) AS m
    WHERE p.plan = of_plan AND p.version = of_version AND p.meter = of_meter
$$;

-- As before; cuts that share a count are rated from where the ones before them stopped.
CREATE OR REPLACE FUNCTION charge_plan(tenants uuid[], periods text[], until timestamptz,
    within tstzrange)
RETURNS TABLE (tenant_id uuid, period text, line_key text, kind text, meter text,
    starts_at timestamptz, ends_at timestamptz, quantity numeric, exact numeric,
    amount_minor bigint, detail jsonb)
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    WITH c AS MATERIALIZED (
        SELECT row_number() OVER () AS n, c.*, v.fee_minor, v.minimum_commitment_minor,
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
    shared AS MATERIALIZED (
        SELECT c.n, u.meter, sum(u.quantity) AS whole,
            COALESCE(sum(u.quantity) FILTER (WHERE o.starts_at < c.starts_at), 0) AS before
        FROM c
        JOIN c o ON o.tenant_id = c.tenant_id AND o.starts_at >= c.counted_from
            AND o.starts_at < c.counted_until
        JOIN used u ON u.n = o.n
        WHERE NOT c.is_alone
        GROUP BY c.n, u.meter
    ),
    usage_line AS (
        SELECT c.*, p.meter, u.quantity, p.model, p.size, i.included, k.before,
            b.high - b.low AS billable,
            CASE WHEN p.tiers > 1 THEN m.tiers WHEN o.units IS NOT NULL THEN jsonb_build_array(
                jsonb_build_object('quantity', trim_scale(o.units)::text, 'unitPrice', p.price,
                    'flatFeeMinor', o.flat_minor)) END AS tiers,
            divide(
                COALESCE(m.units, o.units * p.unit_price, 0) * c.minors * c.period_seconds
                    + CASE WHEN p.tiers > 1 THEN m.flat_minor ELSE o.flat_minor END
                    * c.counted_seconds * p.unit_size,
                c.minors * c.period_seconds * p.unit_size) AS exact
        FROM used u
        JOIN c ON c.n = u.n
        JOIN book p ON p.plan = c.plan AND p.version = c.version AND p.meter = u.meter
        LEFT JOIN shared k ON k.n = u.n AND k.meter = u.meter
        CROSS JOIN LATERAL (SELECT CASE WHEN c.counted_seconds = c.period_seconds THEN p.included
            ELSE div(p.included * c.counted_seconds * 1000000000000, c.period_seconds)
                * 0.000000000001 END AS included OFFSET 0) AS i
        CROSS JOIN LATERAL (SELECT
            CASE WHEN k.n IS NULL THEN 0 ELSE greatest(k.before - i.included, 0) END AS low,
            greatest(CASE WHEN k.n IS NULL THEN u.quantity ELSE k.before + u.quantity END
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
                greatest(COALESCE(k.whole, u.quantity) - i.included, 0), t.lo, t.hi) AS w
            WHERE p.tiers > 1 AND t.plan = p.plan AND t.version = p.version AND t.meter = p.meter
        ) AS m ON true
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
        SELECT l.*, half_even(l.exact * l.minors)::bigint AS amount_minor FROM line l
    ),
    commitment AS (
        SELECT c.tenant_id, c.period, min(c.starts_at) AS starts_at, max(c.ends_at) AS ends_at,
            c.minors, divide(sum(c.minimum_commitment_minor * c.seconds),
                c.minors * c.period_seconds) AS least
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
        r.exact, r.amount_minor, r.detail
    FROM rounded r
    UNION ALL
    SELECT k.tenant_id, k.period, 'commitment', 'commitment', NULL, k.starts_at, k.ends_at, 1,
        k.exact, half_even(k.exact * k.minors)::bigint,
        jsonb_build_object('minimum', trim_scale(k.least)::text)
    FROM topped_up k WHERE k.exact > 0
$$;

-- Where tenants stand is built again, with the time over which each cut counts.
DELETE FROM usage_total;
DELETE FROM usage_segment;
ALTER TABLE usage_segment
    ADD COLUMN counted_from timestamptz NOT NULL,
    ADD COLUMN counted_until timestamptz NOT NULL,
    ADD CHECK (counted_from <= starts_at AND ends_at <= counted_until);
CREATE OR REPLACE FUNCTION build_segments(tenants uuid[], periods text[]) RETURNS void
LANGUAGE plpgsql AS $$
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
-- CREATE OR REPLACE forgets the owner's rights of 013.
ALTER FUNCTION build_segments(uuid[], text[]) SECURITY DEFINER SET search_path FROM CURRENT;
