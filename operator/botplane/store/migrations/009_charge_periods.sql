-- Rating: usage times price, rounded once to the minor unit of the currency. Read it from the end:
-- charge() is what invoices, usage, limits and forecasts all ask.

-- Fees, usage and commitments of periods that all lie within `within`: other months are not looked
-- at. Cuts have numbers, so that what is used and what it costs meet by these; prices are read
-- once, with the one tier that most have (others are looked up where they are used); hours are put
-- between the edges of cuts only if these are not the same for all. Cuts that share a count, whose
-- numbers are below zero, are rated from where the ones before them stopped. Each line is rounded
-- as its plan version says, a commitment as the last one of its period.
CREATE FUNCTION charge_plan(tenants uuid[], periods text[], until timestamptz,
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

-- Where tenants stand before and after each stay of some periods, for those that have or had a
-- plan with a high-water mark. It goes on from the last period whose mark is stored and still
-- holds: none up to it is open again or has late trades. `anew`: from the first trade.
CREATE FUNCTION commission_marks(tenants uuid[], periods text[], until timestamptz,
    anew boolean DEFAULT false)
RETURNS TABLE (tenant_id uuid, period text, stay timestamptz, opening numeric, mark_before numeric,
    cumulative numeric, mark numeric)
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    WITH asked AS MATERIALIZED (
        SELECT b.tenant_id, b.period, b.starts_at, b.ends_at
        FROM unnest(tenants, periods) AS a (tenant_id, period)
        JOIN billing_period b ON b.tenant_id = a.tenant_id AND b.period = a.period
        WHERE EXISTS (SELECT FROM plan_version v WHERE v.commission_netting = 'hwm')
            AND EXISTS (SELECT FROM subscription_phase s JOIN plan_version v ON v.plan = s.plan
                WHERE s.tenant_id = b.tenant_id AND v.commission_netting = 'hwm')
    ),
    anchor AS MATERIALIZED (
        SELECT a.tenant_id, a.ends_at AS until, COALESCE(k.ends_at, '-infinity') AS since,
            COALESCE(k.cumulative, 0) AS cumulative, COALESCE(k.mark, 0) AS mark
        FROM (SELECT q.tenant_id, min(q.starts_at) AS starts_at, max(q.ends_at) AS ends_at
            FROM asked q GROUP BY q.tenant_id) AS a
        LEFT JOIN LATERAL (
            SELECT b.ends_at, m.cumulative, m.mark
            FROM commission_mark m
            JOIN billing_period b ON b.tenant_id = m.tenant_id AND b.period = m.period
            WHERE NOT anew AND m.tenant_id = a.tenant_id AND b.ends_at <= a.starts_at
                AND NOT EXISTS (SELECT FROM billing_period o
                    WHERE o.tenant_id = a.tenant_id AND o.ends_at <= b.ends_at
                        AND (o.state <> 'closed' OR EXISTS (SELECT FROM late_usage l
                            WHERE l.tenant_id = o.tenant_id AND l.period = o.period)))
            ORDER BY b.ends_at DESC LIMIT 1
        ) AS k ON true
    ),
    net AS (
        SELECT b.tenant_id, b.period, s.starts_at AS stay, d.starts_at, a.cumulative, a.mark,
            COALESCE(w.pnl, 0) AS pnl
        FROM anchor a
        JOIN billing_period b ON b.tenant_id = a.tenant_id AND b.ends_at > a.since
            AND b.ends_at <= a.until
        JOIN subscription_phase s ON s.tenant_id = b.tenant_id AND s.starts_at < b.ends_at
            AND (s.ends_at IS NULL OR s.ends_at > b.starts_at)
        CROSS JOIN LATERAL (SELECT greatest(b.starts_at, s.starts_at) AS starts_at,
            least(b.ends_at, s.ends_at, commission_marks.until) AS ends_at) AS d
        -- By the index for each stay, also while Postgres does not know yet how many trades there are.
        CROSS JOIN LATERAL (SELECT sum(t.pnl * t.fx_rate) AS pnl FROM trade_commission t
            WHERE t.tenant_id = b.tenant_id AND t.fx_rate IS NOT NULL
                AND t.closed_at >= d.starts_at AND t.closed_at < d.ends_at) AS w
    ),
    reached AS (
        SELECT n.tenant_id, n.period, n.stay, n.starts_at, n.pnl, n.mark,
            n.cumulative + sum(n.pnl) OVER (PARTITION BY n.tenant_id ORDER BY n.starts_at)
                AS cumulative
        FROM net n
    ),
    marked AS (
        SELECT r.*, greatest(r.mark, max(r.cumulative) OVER (PARTITION BY r.tenant_id
                ORDER BY r.starts_at ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING))
            AS mark_before
        FROM reached r
    )
    SELECT m.tenant_id, m.period, m.stay, m.cumulative - m.pnl, m.mark_before, m.cumulative,
        greatest(m.mark_before, m.cumulative)
    FROM (SELECT k.*, (k.tenant_id, k.period) IN (SELECT q.tenant_id, q.period FROM asked q)
        AS is_asked FROM marked k OFFSET 0) AS m
    WHERE m.is_asked
$$;

-- Commission on the winning trades of each cut: profit * rate * (1 - discount), capped per trade,
-- then per period (by the seconds of the cut). The discount is that of the volume traded in the
-- whole period, so the order in which trades arrive does not matter. Where losses count, a later
-- loss of a stay takes back the latest gains first: `kept` is what was reached in a cut and not
-- lost in a later one, and the cut pays for what of it is above zero, or the mark, and above that
-- of the cut before it. The cap of a period is that of a count, as of usage: a cut pays for what it
-- adds to the count below its cap.
CREATE FUNCTION charge_commission(tenants uuid[], periods text[], until timestamptz)
RETURNS TABLE (tenant_id uuid, period text, line_key text, kind text, meter text,
    starts_at timestamptz, ends_at timestamptz, quantity numeric, exact numeric,
    amount_minor bigint, detail jsonb)
LANGUAGE sql STABLE AS $$
    WITH traded AS MATERIALIZED (
        SELECT p.tenant_id, p.period, t.closed_at, t.pnl * t.fx_rate AS pnl,
            t.volume * t.fx_rate AS volume
        FROM unnest(tenants, periods) AS asked (tenant_id, period)
        JOIN billing_period p ON p.tenant_id = asked.tenant_id AND p.period = asked.period
        JOIN trade_commission t ON t.tenant_id = p.tenant_id AND t.closed_at >= p.starts_at
            AND t.closed_at < least(p.ends_at, until)
        WHERE t.fx_rate IS NOT NULL
    ),
    trader AS MATERIALIZED (
        SELECT t.tenant_id, t.period, sum(t.volume) AS volume FROM traded t
        GROUP BY t.tenant_id, t.period
    ),
    c AS MATERIALIZED (
        SELECT c.tenant_id, c.period, c.plan, c.version, s.starts_at AS stay, c.starts_at,
            c.ends_at, c.period_seconds, c.counted_from, m.minors, v.rounding,
            extract(epoch FROM c.counted_until - c.counted_from) AS counted_seconds,
            v.commission_rate AS rate, v.commission_netting AS netting,
            v.commission_cap_per_trade_minor AS cap_per_trade,
            v.commission_cap_per_period_minor AS cap_per_period, r.volume,
            COALESCE(d.discount, 0) AS discount
        FROM cut(ARRAY(SELECT a.tenant_id FROM trader a ORDER BY a.tenant_id, a.period),
            ARRAY(SELECT a.period FROM trader a ORDER BY a.tenant_id, a.period)) c
        JOIN trader r ON r.tenant_id = c.tenant_id AND r.period = c.period
        JOIN subscription_phase s ON s.tenant_id = c.tenant_id AND s.starts_at <= c.starts_at
            AND (s.ends_at IS NULL OR s.ends_at > c.starts_at)
        JOIN plan_version v ON v.plan = c.plan AND v.version = c.version
        JOIN plan p ON p.plan = c.plan
        JOIN currency u ON u.currency = p.currency
        CROSS JOIN LATERAL (SELECT power(10::numeric, u.minor_units) AS minors) AS m
        LEFT JOIN LATERAL (SELECT d.discount FROM plan_volume_discount d
            WHERE d.plan = c.plan AND d.version = c.version
                AND d.from_volume_minor <= r.volume * m.minors
            ORDER BY d.from_volume_minor DESC LIMIT 1) AS d ON true
    ),
    summed AS (
        SELECT c.tenant_id, c.starts_at, count(*) AS trades, sum(t.pnl) AS net,
            count(*) FILTER (WHERE t.pnl > 0) AS won,
            sum(t.pnl) FILTER (WHERE t.pnl > 0) AS profit,
            sum(least(t.pnl * c.rate * (1 - c.discount) * c.minors, c.cap_per_trade))
                FILTER (WHERE t.pnl > 0) AS minor
        FROM c
        JOIN traded t ON t.tenant_id = c.tenant_id AND t.closed_at >= c.starts_at
            AND t.closed_at < c.ends_at
        GROUP BY c.tenant_id, c.starts_at
    ),
    reached AS (
        SELECT c.*, s.trades, s.won, s.profit, s.minor, s.net, sum(s.net) OVER (
            PARTITION BY c.tenant_id, c.period, c.stay ORDER BY c.starts_at) AS reached
        FROM c
        LEFT JOIN summed s ON s.tenant_id = c.tenant_id AND s.starts_at = c.starts_at
    ),
    kept AS (
        SELECT r.*, min(COALESCE(r.reached, 0)) OVER (PARTITION BY r.tenant_id, r.period, r.stay
            ORDER BY r.starts_at ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING) AS kept
        FROM reached r
    ),
    based AS (
        SELECT k.*, m.opening, m.mark_before, m.mark, greatest(k.kept + b.above, 0)
            - greatest(lag(k.kept) OVER (PARTITION BY k.tenant_id, k.period, k.stay
                ORDER BY k.starts_at) + b.above, 0) AS base
        FROM kept k
        LEFT JOIN commission_marks(ARRAY(SELECT a.tenant_id FROM trader a
                ORDER BY a.tenant_id, a.period),
            ARRAY(SELECT a.period FROM trader a ORDER BY a.tenant_id, a.period), until) m
            ON m.tenant_id = k.tenant_id AND m.period = k.period AND m.stay = k.stay
        CROSS JOIN LATERAL (SELECT CASE k.netting WHEN 'hwm' THEN m.opening - m.mark_before
            ELSE 0 END AS above) AS b
    ),
    earned AS (
        SELECT b.*, w.quantity, w.of_profit, w.of_minor,
            CASE WHEN b.counted_from = b.starts_at THEN 0 ELSE COALESCE(sum(w.of_minor) OVER (
                PARTITION BY b.tenant_id, b.period, b.stay ORDER BY b.starts_at
                ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) END AS before
        FROM based b
        CROSS JOIN LATERAL (SELECT
            CASE b.netting WHEN 'none' THEN b.won ELSE b.trades END AS quantity,
            CASE b.netting WHEN 'none' THEN b.profit ELSE b.base END AS of_profit,
            CASE b.netting WHEN 'none' THEN b.minor
                ELSE b.base * b.rate * (1 - b.discount) * b.minors END AS of_minor OFFSET 0) AS w
    ),
    line AS (
        SELECT e.*, divide(
            least((e.before + e.of_minor) * e.period_seconds, e.cap_per_period * e.counted_seconds)
                - least(e.before * e.period_seconds, e.cap_per_period * e.counted_seconds),
            e.minors * e.period_seconds) AS exact
        FROM earned e
        WHERE e.rate > 0 AND e.quantity > 0
    )
    SELECT l.tenant_id, l.period, 'commission/' || to_char(
            l.starts_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
        'commission', NULL, l.starts_at, l.ends_at, l.quantity, l.exact,
        round_by(l.rounding, l.exact * l.minors)::bigint,
        jsonb_build_object('plan', l.plan, 'version', l.version,
            'profit', trim_scale(l.of_profit)::text, 'volume', trim_scale(l.volume)::text,
            'rate', trim_scale(l.rate)::text, 'discount', trim_scale(l.discount)::text,
            'capPerTradeMinor', l.cap_per_trade, 'capPerPeriodMinor', l.cap_per_period)
            || CASE WHEN l.cap_per_period IS NULL OR l.before = 0 THEN '{}'
                ELSE jsonb_build_object('earnedBefore', trim_scale(divide(l.before, l.minors))::text)
                END
            || CASE l.rounding WHEN 'half_even' THEN '{}'
                ELSE jsonb_build_object('rounding', l.rounding) END
            || CASE l.netting WHEN 'none' THEN '{}'
                ELSE jsonb_build_object('netting', l.netting, 'net', trim_scale(l.net)::text) END
            || CASE l.netting WHEN 'hwm' THEN jsonb_build_object(
                'cumulative', trim_scale(l.opening + l.reached)::text,
                'markBefore', trim_scale(l.mark_before)::text, 'mark', trim_scale(l.mark)::text)
                ELSE '{}' END
    FROM line l
$$;

CREATE FUNCTION charge_one_offs(tenants uuid[], periods text[])
RETURNS TABLE (tenant_id uuid, period text, line_key text, kind text, meter text,
    starts_at timestamptz, ends_at timestamptz, quantity numeric, exact numeric,
    amount_minor bigint, detail jsonb)
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT o.tenant_id, o.period, 'one_off/' || o.reference, 'one_off', NULL::text, b.starts_at,
        b.ends_at, 1::numeric, divide(o.amount_minor, power(10::numeric, u.minor_units)),
        o.amount_minor::bigint, jsonb_build_object('description', o.description)
    FROM unnest(tenants, periods) AS asked (tenant_id, period)
    JOIN one_off o ON o.tenant_id = asked.tenant_id AND o.period = asked.period
    JOIN billing_period b ON b.tenant_id = o.tenant_id AND b.period = o.period
    JOIN tenant t ON t.tenant_id = o.tenant_id
    JOIN currency u ON u.currency = t.currency
$$;

-- All lines of periods that lie within `within`, up to a moment.
CREATE FUNCTION charge(tenants uuid[], periods text[], until timestamptz,
    within tstzrange DEFAULT '[-infinity,infinity]')
RETURNS TABLE (tenant_id uuid, period text, line_key text, kind text, meter text,
    starts_at timestamptz, ends_at timestamptz, quantity numeric, exact numeric,
    amount_minor bigint, detail jsonb)
LANGUAGE sql STABLE AS $$
    SELECT * FROM charge_plan(tenants, periods, until, within)
    UNION ALL
    SELECT * FROM charge_commission(tenants, periods, until)
    UNION ALL
    SELECT * FROM charge_one_offs(tenants, periods)
$$;
