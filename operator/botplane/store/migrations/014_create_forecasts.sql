-- What periods were expected to cost, kept on the way to be compared with what they did cost.

CREATE TABLE forecast (
    tenant_id uuid NOT NULL,
    period text NOT NULL,
    percent integer NOT NULL CHECK (percent IN (10, 25, 50, 75)),
    made_at timestamptz NOT NULL,
    amount_minor minor NOT NULL,
    low_minor minor NOT NULL,
    high_minor minor NOT NULL,
    run_rate_minor minor NOT NULL,
    actual_minor minor,
    PRIMARY KEY (tenant_id, period, percent),
    FOREIGN KEY (tenant_id, period) REFERENCES billing_period,
    CHECK (low_minor <= amount_minor AND amount_minor <= high_minor)
);
COMMENT ON TABLE forecast IS 'One row when a period is 10, 25, 50 and 75 percent over.';
COMMENT ON COLUMN forecast.run_rate_minor IS 'The same with usage as on average until then.';
COMMENT ON COLUMN forecast.actual_minor IS 'Charges of the invoice, without corrections of others.';
CREATE INDEX forecast_open ON forecast (tenant_id, period) WHERE actual_minor IS NULL;

-- What a quantity of a meter costs in a cut: the one place where tiers are applied for documents.
CREATE FUNCTION rate_quantity(of_plan text, of_version integer, of_meter text, used numeric,
    seconds numeric, period_seconds numeric)
RETURNS TABLE (model text, unit_size numeric, included numeric, billable numeric, tiers jsonb,
    exact numeric)
LANGUAGE sql STABLE AS $$
    SELECT p.model, p.unit_size::numeric, b.included, b.billable, t.tiers, divide(
        t.units * m.minors * period_seconds + t.flat_minor * seconds * p.unit_size,
        m.minors * period_seconds * p.unit_size)
    FROM price p
    JOIN plan l ON l.plan = p.plan
    JOIN currency u ON u.currency = l.currency
    CROSS JOIN LATERAL (SELECT power(10::numeric, u.minor_units) AS minors) AS m
    CROSS JOIN LATERAL (SELECT div(p.included * seconds * 1000000000000, period_seconds)
        * 0.000000000001 AS included) AS i
    CROSS JOIN LATERAL (SELECT i.included, greatest(used - i.included, 0) AS billable) AS b
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
    WHERE p.plan = of_plan AND p.version = of_version AND p.meter = of_meter
$$;

-- As before, with the rating of a quantity taken out.
CREATE OR REPLACE FUNCTION charge_plan(tenants uuid[], periods text[], until timestamptz)
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
        SELECT c.*, used.meter, used.quantity, r.model, r.unit_size, r.included, r.billable,
            r.tiers, r.exact
        FROM used
        JOIN c ON c.tenant_id = used.tenant_id AND c.period = used.period
            AND c.starts_at = used.starts_at
        CROSS JOIN LATERAL rate_quantity(c.plan, c.version, used.meter, used.quantity, c.seconds,
            c.period_seconds) r
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

SELECT secure_tenant_tables();
SELECT grant_writes('botplane_operator', 'INSERT, UPDATE (actual_minor)', ARRAY['forecast']);
SELECT grant_writes('botplane_tenant', 'SELECT', ARRAY['forecast']);
