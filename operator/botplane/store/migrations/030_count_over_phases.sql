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

-- charge_plan, which rates by these, is in the next migration: it rounds in a new way too.

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
