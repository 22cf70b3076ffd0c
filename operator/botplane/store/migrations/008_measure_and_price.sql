-- What was used in each part of a period, and what a quantity costs there. Each amount is one exact
-- quotient; what is per period (included quantity, flat fees) counts by the seconds of its cut.

-- As the plan says: money rounds half to even. round() of Postgres rounds halves away from zero.
CREATE FUNCTION round_by(rounding text, x numeric) RETURNS numeric
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN rounding = 'half_up' THEN round(x)
        WHEN abs(x - trunc(x)) = 0.5 THEN 2 * round(x / 2) ELSE round(x) END
$$;

-- n / d to 18 decimals, half to even. The operator `/` would round to fewer decimals.
CREATE FUNCTION divide(n numeric, d numeric) RETURNS numeric
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    scaled CONSTANT numeric := n * 1000000000000000000;
    q numeric := div(scaled, d);
    twice CONSTANT numeric := 2 * abs(scaled - q * d);
BEGIN
    IF twice > d OR (twice = d AND mod(q, 2) <> 0) THEN
        q := q + sign(n);
    END IF;
    RETURN (q * 0.000000000000000001)::numeric(38, 18);
END $$;

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

-- Price at the time of usage: a period is cut where the plan, or a price of it, changes. Included
-- quantities and tiers are counted from `counted_from` on: over the whole time on one plan within
-- the period, also where its prices were revised, unless its tier_scope says otherwise. It starts
-- from the periods, so that the planner knows how many there are.
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
    CROSS JOIN LATERAL (SELECT
        CASE v.tier_scope WHEN 'phase' THEN c.starts_at
            ELSE greatest(p.starts_at, s.starts_at) END AS counted_from,
        CASE v.tier_scope WHEN 'phase' THEN c.ends_at
            ELSE least(p.ends_at, s.ends_at) END AS counted_until) AS k
    WHERE p.tenant_id = ANY(tenants) AND p.period = ANY(periods)
        AND (p.tenant_id, p.period) IN (SELECT a.tenant_id, a.period
            FROM unnest(tenants, periods) AS a (tenant_id, period))
        AND c.starts_at < c.ends_at
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

-- How much of a billable quantity the price of a tier is asked for, when it reaches the tier.
CREATE FUNCTION units_of_tier(model text, unit_size numeric, billable numeric, lo numeric,
    hi numeric) RETURNS numeric
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE model
        WHEN 'flat' THEN 0
        WHEN 'package' THEN unit_size * (div(billable, unit_size) + sign(mod(billable, unit_size)))
        WHEN 'graduated' THEN least(billable, hi) - lo
        ELSE billable END
$$;

-- What a billable quantity that goes from one count to another asks of a tier: units of its price,
-- and its flat fee if the tier is entered in between. No row: nothing. A tier of a volume price is
-- that of the whole count, and entered with the first unit.
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

-- What a quantity of a meter costs in a cut, when `before` of it was used earlier in the same count
-- and `whole` is all of the count. OFFSET 0: each value is computed once, not wherever it is used.
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
