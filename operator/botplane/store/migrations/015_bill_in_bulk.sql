-- The same rules for ten thousand invoices at once: functions that plan well, checks by statement.

-- As before, without asking for the last period of each tenant that has all it needs.
CREATE OR REPLACE FUNCTION missing_periods(at timestamptz)
RETURNS TABLE (tenant_id uuid, period text, starts_at timestamptz, ends_at timestamptz)
LANGUAGE sql STABLE AS $$
    WITH behind AS MATERIALIZED (
        SELECT t.tenant_id, t.time_zone, t.anchor_day,
            least(at, t.closed_at - interval '1 second') AS until
        FROM tenant t
        WHERE NOT EXISTS (SELECT FROM billing_period b WHERE b.tenant_id = t.tenant_id
            AND b.ends_at > least(at, t.closed_at - interval '1 second'))
    )
    SELECT t.tenant_id, to_char(m.month, 'YYYY-MM'),
        greatest(s.reached, period_start(m.month, t.time_zone, t.anchor_day)), e.ends_at
    FROM behind t
    CROSS JOIN LATERAL (SELECT
        (SELECT min(p.starts_at) FROM subscription_phase p WHERE p.tenant_id = t.tenant_id) AS since,
        (SELECT b.ends_at FROM billing_period b WHERE b.tenant_id = t.tenant_id
            ORDER BY b.period DESC LIMIT 1) AS reached) AS s
    CROSS JOIN LATERAL generate_series(
        date_trunc('month', COALESCE(s.reached, s.since) AT TIME ZONE t.time_zone)
            - interval '2 months',
        date_trunc('month', t.until AT TIME ZONE t.time_zone) + interval '1 month',
        interval '1 month') AS m (month)
    CROSS JOIN LATERAL (SELECT period_start(m.month + interval '1 month', t.time_zone,
        t.anchor_day) AS ends_at) AS e
    WHERE COALESCE(s.reached, s.since) <= t.until
        AND e.ends_at > COALESCE(s.reached, s.since)
        AND period_start(m.month, t.time_zone, t.anchor_day) <= t.until
$$;

-- As before: n / d to 18 decimals, half to even. A call costs a fifth of what it did.
CREATE OR REPLACE FUNCTION divide(n numeric, d numeric) RETURNS numeric
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

-- As before; from the periods on, so that the planner knows how many there are.
CREATE OR REPLACE FUNCTION cut(tenants uuid[], periods text[])
RETURNS TABLE (tenant_id uuid, period text, period_seconds numeric, plan text, version integer,
    starts_at timestamptz, ends_at timestamptz, seconds numeric)
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT p.tenant_id, p.period, extract(epoch FROM p.ends_at - p.starts_at), s.plan, v.version,
        c.starts_at, c.ends_at, extract(epoch FROM c.ends_at - c.starts_at)
    FROM billing_period p
    JOIN subscription_phase s ON s.tenant_id = p.tenant_id
    JOIN plan_version v ON v.plan = s.plan
    CROSS JOIN LATERAL (SELECT greatest(p.starts_at, s.starts_at, lower(v.effective)) AS starts_at,
        least(p.ends_at, s.ends_at, upper(v.effective)) AS ends_at) AS c
    WHERE p.tenant_id = ANY(tenants) AND p.period = ANY(periods)
        AND (p.tenant_id, p.period) IN (SELECT a.tenant_id, a.period
            FROM unnest(tenants, periods) AS a (tenant_id, period))
        AND c.starts_at < c.ends_at
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

-- As before: what a quantity of a meter costs in a cut. Of a price with one tier, which most are,
-- nothing is added up. OFFSET 0: each value is computed once, not wherever it is used.
CREATE OR REPLACE FUNCTION rate_quantity(of_plan text, of_version integer, of_meter text,
    used numeric, seconds numeric, period_seconds numeric)
RETURNS TABLE (model text, unit_size numeric, included numeric, billable numeric, tiers jsonb,
    exact numeric)
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT p.model, p.unit_size::numeric, i.included, b.billable,
        CASE WHEN k.tiers > 1 THEN m.tiers WHEN o.units IS NOT NULL THEN jsonb_build_array(
            jsonb_build_object('quantity', trim_scale(o.units)::text, 'unitPrice', k.price,
                'flatFeeMinor', k.flat_minor)) END,
        divide(
            COALESCE(m.units, o.units * k.unit_price, 0) * l.minors * period_seconds
                + CASE WHEN k.tiers > 1 THEN m.flat_minor WHEN o.units IS NOT NULL THEN k.flat_minor
                    ELSE 0 END * seconds * p.unit_size,
            l.minors * period_seconds * p.unit_size)
    FROM price p
    JOIN (SELECT l.plan, power(10::numeric, u.minor_units) AS minors
        FROM plan l JOIN currency u ON u.currency = l.currency OFFSET 0) AS l ON l.plan = p.plan
    JOIN (SELECT t.plan, t.version, t.meter, count(*) AS tiers, min(t.lo) AS lo, max(t.hi) AS hi,
            min(t.unit_price) AS unit_price, trim_scale(min(t.unit_price))::text AS price,
            min(t.flat_fee_minor) AS flat_minor
        FROM price_tier t GROUP BY t.plan, t.version, t.meter) AS k
        ON k.plan = p.plan AND k.version = p.version AND k.meter = p.meter
    CROSS JOIN LATERAL (SELECT div(p.included * seconds * 1000000000000, period_seconds)
        * 0.000000000001 AS included OFFSET 0) AS i
    CROSS JOIN LATERAL (SELECT greatest(used - i.included, 0) AS billable OFFSET 0) AS b
    CROSS JOIN LATERAL (SELECT CASE WHEN k.tiers = 1 AND b.billable > k.lo
            AND (p.model <> 'volume' OR b.billable <= k.hi OR k.hi IS NULL)
        THEN units_of_tier(p.model, p.unit_size, b.billable, k.lo, k.hi) END AS units OFFSET 0) AS o
    LEFT JOIN LATERAL (
        SELECT sum(w.units * t.unit_price) AS units, COALESCE(sum(t.flat_fee_minor), 0) AS flat_minor,
            jsonb_agg(jsonb_build_object('quantity', trim_scale(w.units)::text,
                'unitPrice', trim_scale(t.unit_price)::text, 'flatFeeMinor', t.flat_fee_minor)
                ORDER BY t.lo) AS tiers
        FROM price_tier t
        CROSS JOIN LATERAL (SELECT units_of_tier(p.model, p.unit_size, b.billable, t.lo, t.hi)
            AS units) AS w
        WHERE k.tiers > 1 AND t.plan = p.plan AND t.version = p.version AND t.meter = p.meter
            AND b.billable > t.lo AND (p.model <> 'volume' OR b.billable <= t.hi OR t.hi IS NULL)
    ) AS m ON true
    WHERE p.plan = of_plan AND p.version = of_version AND p.meter = of_meter
$$;

-- What was used in each cut up to a moment, by meter: what metered() says, without bots, for many
-- tenants. All periods lie within `within`: other months are not looked at. Hours are added up
-- between the moments where any cut begins or ends, before they meet the cuts.
CREATE FUNCTION used(tenants uuid[], periods text[], until timestamptz, within tstzrange)
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
            sum(s.seconds * i.mem_bytes) * 0.000000000931322574615478515625 AS memory_gib_seconds
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
            ('memory_gib_seconds', r.memory_gib_seconds)) AS v (meter, quantity)
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
    SELECT p.tenant_id, p.period, p.starts_at, p.meter, trunc(sum(p.quantity), 12)
    FROM part p
    GROUP BY p.tenant_id, p.period, p.starts_at, p.meter
    HAVING sum(p.quantity) > 0
$$;

-- As before, for periods that all lie within `within`.
CREATE FUNCTION charge_plan(tenants uuid[], periods text[], until timestamptz, within tstzrange)
RETURNS TABLE (tenant_id uuid, period text, line_key text, kind text, meter text,
    starts_at timestamptz, ends_at timestamptz, quantity numeric, exact numeric,
    amount_minor bigint, detail jsonb)
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    WITH c AS (
        SELECT c.*, v.fee_minor, v.minimum_commitment_minor,
            power(10::numeric, u.minor_units) AS minors, '/' || to_char(
                c.starts_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS suffix
        FROM cut(tenants, periods) c
        JOIN plan_version v ON v.plan = c.plan AND v.version = c.version
        JOIN plan p ON p.plan = c.plan
        JOIN currency u ON u.currency = p.currency
    ),
    usage_line AS (
        SELECT c.*, used.meter, used.quantity, r.model, r.unit_size, r.included, r.billable,
            r.tiers, r.exact
        FROM used(tenants, periods, until, within) used
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
CREATE OR REPLACE FUNCTION charge_plan(tenants uuid[], periods text[], until timestamptz)
RETURNS TABLE (tenant_id uuid, period text, line_key text, kind text, meter text,
    starts_at timestamptz, ends_at timestamptz, quantity numeric, exact numeric,
    amount_minor bigint, detail jsonb)
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT * FROM charge_plan(tenants, periods, until, '[-infinity,infinity]')
$$;

-- All charges of periods that lie within `within`.
CREATE FUNCTION charge(tenants uuid[], periods text[], until timestamptz, within tstzrange)
RETURNS TABLE (tenant_id uuid, period text, line_key text, kind text, meter text,
    starts_at timestamptz, ends_at timestamptz, quantity numeric, exact numeric,
    amount_minor bigint, detail jsonb)
LANGUAGE sql STABLE AS $$
    SELECT * FROM charge_plan(tenants, periods, until, within)
    UNION ALL
    SELECT * FROM charge_commission(tenants, periods, until)
$$;

-- The same rules as the triggers for each row, which these replace: a statement that breaks one
-- fails as a whole. Every ledger transaction is written, with all its entries, by one statement.
DROP TRIGGER invoice_line_guard ON invoice_line;
DROP TRIGGER invoice_line_guard ON invoice_discount;
DROP TRIGGER invoice_line_guard ON invoice_tax;
DROP TRIGGER invoice_line_guard ON invoice_credit;
CREATE OR REPLACE FUNCTION invoice_line_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM (SELECT DISTINCT a.tenant_id, a.invoice_id FROM added a) AS a
    WHERE NOT EXISTS (SELECT FROM invoice i WHERE i.tenant_id = a.tenant_id
        AND i.invoice_id = a.invoice_id AND i.status = 'draft');
    IF FOUND THEN
        RAISE EXCEPTION 'lines are added while the invoice is a draft'
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NULL;
END $$;

DROP TRIGGER invoice_lines_sum ON invoice;
CREATE OR REPLACE FUNCTION invoice_lines_sum() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    wrong record;
BEGIN
    SELECT i.number, s.found_sums, s.said INTO wrong
    FROM written i
    CROSS JOIN LATERAL (SELECT COALESCE(sum(l.amount_minor), 0) AS amount,
            COALESCE(sum(l.discount_minor), 0) AS discount
        FROM invoice_line l WHERE l.tenant_id = i.tenant_id AND l.invoice_id = i.invoice_id) AS l
    CROSS JOIN LATERAL (SELECT ARRAY[l.amount, l.discount,
        (SELECT COALESCE(sum(d.amount_minor), 0) FROM invoice_discount d
            WHERE d.tenant_id = i.tenant_id AND d.invoice_id = i.invoice_id),
        (SELECT COALESCE(sum(t.amount_minor), 0) FROM invoice_tax t
            WHERE t.tenant_id = i.tenant_id AND t.invoice_id = i.invoice_id),
        (SELECT COALESCE(sum(c.amount_minor), 0) FROM invoice_credit c
            WHERE c.tenant_id = i.tenant_id AND c.invoice_id = i.invoice_id)] AS found_sums,
        ARRAY[i.subtotal_minor, i.discount_minor, i.discount_minor, i.tax_minor,
            i.credit_minor]::numeric[] AS said) AS s
    WHERE i.status = 'finalized' AND s.found_sums IS DISTINCT FROM s.said
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'parts of invoice % sum to %, not to %', wrong.number, wrong.found_sums,
            wrong.said USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER invoice_lines_sum_inserted AFTER INSERT ON invoice
    REFERENCING NEW TABLE AS written FOR EACH STATEMENT EXECUTE FUNCTION invoice_lines_sum();
CREATE TRIGGER invoice_lines_sum_updated AFTER UPDATE ON invoice
    REFERENCING NEW TABLE AS written FOR EACH STATEMENT EXECUTE FUNCTION invoice_lines_sum();

DROP TRIGGER ledger_balanced ON ledger_entry;
CREATE OR REPLACE FUNCTION ledger_balanced() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    odd text;
BEGIN
    SELECT e.txn_key INTO odd
    FROM (SELECT DISTINCT a.tenant_id, a.txn_key FROM added a) AS a
    JOIN ledger_entry e ON e.tenant_id = a.tenant_id AND e.txn_key = a.txn_key
    GROUP BY e.tenant_id, e.txn_key, e.currency HAVING sum(e.amount_minor) <> 0
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'ledger transaction % does not balance', odd
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER ledger_balanced AFTER INSERT ON ledger_entry
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION ledger_balanced();

-- As before; comparing rows costs a tenth of comparing their JSON.
CREATE OR REPLACE FUNCTION invoice_guard() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    was CONSTANT text := OLD.status;
BEGIN
    OLD.status := NEW.status;
    IF OLD *<> NEW THEN
        RAISE EXCEPTION 'invoice % is immutable', OLD.number USING ERRCODE = 'restrict_violation';
    END IF;
    IF NEW.status <> was AND (was, NEW.status) NOT IN (
        ('draft', 'finalized'), ('finalized', 'paid'), ('finalized', 'void'),
        ('finalized', 'uncollectible'), ('uncollectible', 'paid'), ('uncollectible', 'void'))
    THEN
        RAISE EXCEPTION 'invoice % cannot become % after %', OLD.number, NEW.status, was
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['invoice_line', 'invoice_discount', 'invoice_tax',
        'invoice_credit'] LOOP
        EXECUTE format('CREATE TRIGGER invoice_line_guard AFTER INSERT ON %I
            REFERENCING NEW TABLE AS added
            FOR EACH STATEMENT EXECUTE FUNCTION invoice_line_guard()', name);
    END LOOP;
    -- CREATE OR REPLACE forgets the owner's rights of 009.
    ALTER FUNCTION invoice_line_guard() SECURITY DEFINER SET search_path FROM CURRENT;
END $$;
