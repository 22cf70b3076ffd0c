-- one_moment --
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ

-- many --
-- All of a table is read at once, not row by row, and sums stay out of temporary files.
SELECT set_config('work_mem', '64MB', true), set_config('jit', 'off', true),
    set_config('enable_nestloop', 'off', true)

-- segments --
-- The cuts of some periods, with what depends on time alone, as an invoice rounds it:
-- the fee of the cut, the commitment (exact) and the highest commission of the period. In minor
-- units.
SELECT s.tenant_id, s.starts_at, s.ends_at, s.counted_from, s.counted_until,
    round_by(v.rounding, divide(v.fee_minor * k.seconds, m.minors * k.period_seconds) * m.minors)
        ::bigint AS fee,
    u.minor_units AS digits,
    divide(sum(v.minimum_commitment_minor * k.seconds) OVER period, m.minors * k.period_seconds)
        * m.minors AS commitment,
    bool_or(v.commission_rate > 0) OVER period AS has_commission,
    CASE WHEN bool_or(v.commission_cap_per_period_minor IS NULL) OVER period THEN NULL
        ELSE sum(v.commission_cap_per_period_minor * k.seconds) OVER period / k.period_seconds
        END::bigint AS commission_cap,
    first_value(v.rounding) OVER (PARTITION BY s.tenant_id ORDER BY s.starts_at DESC) AS rounding
FROM unnest(%(tenants)s::uuid[], %(periods)s::text[]) AS a (tenant_id, period)
JOIN usage_segment s ON s.tenant_id = a.tenant_id AND s.period = a.period
    AND s.tenant_id = ANY(%(tenants)s)
JOIN plan_version v ON v.plan = s.plan AND v.version = s.version
JOIN plan p ON p.plan = s.plan
JOIN currency u ON u.currency = p.currency
CROSS JOIN LATERAL (SELECT power(10::numeric, u.minor_units) AS minors) AS m
CROSS JOIN LATERAL (SELECT extract(epoch FROM s.ends_at - s.starts_at) AS seconds,
    extract(epoch FROM s.period_ends_at - s.period_starts_at) AS period_seconds) AS k
WINDOW period AS (PARTITION BY s.tenant_id)
ORDER BY s.tenant_id, s.starts_at

-- uses --
-- By cut and meter: what was used until now, and what it will be at the end of the cut if the
-- containers and volumes of now stay and no event comes.
WITH segment AS MATERIALIZED (
    SELECT s.tenant_id, s.starts_at, s.ends_at, s.plan, s.version
    FROM unnest(%(tenants)s::uuid[], %(periods)s::text[]) AS a (tenant_id, period)
    JOIN usage_segment s ON s.tenant_id = a.tenant_id AND s.period = a.period
    WHERE s.tenant_id = ANY(%(tenants)s)
),
use AS (
    SELECT t.tenant_id, t.starts_at, t.meter, t.quantity AS used, t.quantity AS at_end
    FROM segment s JOIN usage_total t ON t.tenant_id = s.tenant_id AND t.starts_at = s.starts_at
    WHERE t.tenant_id = ANY(%(tenants)s)
    UNION ALL
    SELECT i.tenant_id, s.starts_at, m.meter,
        m.quantity * greatest(0, extract(epoch FROM least(s.ends_at, %(now)s) - b.begins)),
        m.quantity * extract(epoch FROM s.ends_at - b.begins)
    FROM runtime_interval i
    JOIN segment s ON s.tenant_id = i.tenant_id AND s.ends_at > i.started_at
    CROSS JOIN LATERAL (SELECT greatest(i.started_at, s.starts_at) AS begins) AS b
    CROSS JOIN LATERAL interval_meters(1, i.container, i.cpu_milli, i.mem_bytes,
        i.storage_bytes) m
    WHERE i.tenant_id = ANY(%(tenants)s) AND i.ended_at IS NULL AND i.started_at < %(now)s
)
SELECT u.tenant_id, u.starts_at, u.meter, billed_quantity(sum(u.used)), billed_quantity(sum(u.at_end))
FROM use u
JOIN segment s ON s.tenant_id = u.tenant_id AND s.starts_at = u.starts_at
WHERE EXISTS (SELECT FROM price p WHERE p.plan = s.plan AND p.meter = u.meter)
GROUP BY u.tenant_id, u.starts_at, u.meter

-- event_days --
-- Events of the last 28 days by day, counted back from the last full hour; and the part of each day
-- in its first hours, as many as remain of the period beyond whole days.
SELECT d.tenant_id, d.meter, array_agg(d.day), array_agg(d.whole), array_agg(d.head)
FROM (
    SELECT u.tenant_id, u.meter, a.hours / 24 AS day, sum(u.quantity)::double precision AS whole,
        sum(u.quantity * least(greatest(e.hours - (23 - mod(a.hours, 24)), 0), 1))::double precision
            AS head
    FROM usage_hourly u
    JOIN unnest(%(tenants)s::uuid[], %(rests)s::numeric[]) AS e (tenant_id, hours)
        ON e.tenant_id = u.tenant_id
    CROSS JOIN LATERAL (SELECT extract(epoch FROM %(until)s - u.hour)::integer / 3600 - 1 AS hours)
        AS a
    WHERE u.tenant_id = ANY(%(tenants)s) AND u.hour >= %(since)s AND u.hour < %(until)s
        AND u.meter IN (SELECT p.meter FROM price p)
    GROUP BY u.tenant_id, u.meter, a.hours / 24
) d
GROUP BY d.tenant_id, d.meter

-- run_days --
-- The same of what ran, with how much a second of it counted at the end of each day.
SELECT r.tenant_id, r.meter, array_agg(r.day), array_agg(r.whole), array_agg(r.head),
    array_agg(r.level)
FROM (
    SELECT i.tenant_id, m.meter, d.day,
        sum(m.quantity * extract(epoch FROM t.ends - t.begins))::double precision AS whole,
        sum(m.quantity * greatest(0, extract(epoch FROM
            least(t.ends, d.begins + e.hours * interval '1 hour') - t.begins)))::double precision
            AS head,
        sum(m.quantity) FILTER (WHERE i.ended_at IS NULL OR i.ended_at > d.ends)::double precision
            AS level
    FROM unnest(%(tenants)s::uuid[], %(rests)s::numeric[]) AS e (tenant_id, hours)
    JOIN runtime_interval i ON i.tenant_id = e.tenant_id
    JOIN (SELECT n AS day, %(until)s::timestamptz - (n + 1) * interval '24 hours' AS begins,
            %(until)s::timestamptz - n * interval '24 hours' AS ends FROM generate_series(0, 27) n) d
        ON i.started_at < d.ends AND (i.ended_at IS NULL OR i.ended_at > d.begins)
    CROSS JOIN LATERAL (SELECT greatest(i.started_at, d.begins) AS begins,
        least(i.ended_at, d.ends) AS ends) AS t
    CROSS JOIN LATERAL interval_meters(1, i.container, i.cpu_milli, i.mem_bytes,
        i.storage_bytes) m
    WHERE i.tenant_id = ANY(%(tenants)s) AND m.meter IN (SELECT p.meter FROM price p)
        AND tstzrange(i.started_at, i.ended_at) && tstzrange(%(since)s, %(until)s)
    GROUP BY i.tenant_id, m.meter, d.day
) r
GROUP BY r.tenant_id, r.meter

-- winnings --
-- What trades won in the period so far, and by day as events.
SELECT d.tenant_id, sum(d.in_period), array_agg(d.day), array_agg(d.whole), array_agg(d.head)
FROM (
    SELECT t.tenant_id, floor(a.hours / 24.0)::integer AS day,
        sum(a.won)::double precision AS whole,
        sum(a.won * least(greatest(e.hours - (23 - mod(a.hours, 24)), 0), 1))::double precision
            AS head,
        COALESCE(sum(a.won) FILTER (WHERE t.closed_at >= e.starts_at), 0) AS in_period
    FROM unnest(%(tenants)s::uuid[], %(rests)s::numeric[], %(starts)s::timestamptz[])
        AS e (tenant_id, hours, starts_at)
    JOIN trade_commission t ON t.tenant_id = e.tenant_id AND t.closed_at < %(now)s
        AND t.closed_at >= least(%(since)s, e.starts_at)
    CROSS JOIN LATERAL (SELECT floor(extract(epoch FROM %(until)s - t.closed_at) / 3600)::integer
        AS hours, t.pnl * t.fx_rate AS won) AS a
    WHERE t.tenant_id = ANY(%(tenants)s) AND t.pnl > 0 AND t.fx_rate IS NOT NULL
    GROUP BY t.tenant_id, floor(a.hours / 24.0)::integer
) d
GROUP BY d.tenant_id

-- commissions --
-- Of who won, in minor units, as an invoice rounds it.
SELECT c.tenant_id, sum(c.amount_minor)::bigint
FROM charge_commission(%(tenants)s, %(periods)s, %(now)s) c
GROUP BY c.tenant_id

-- rated --
-- What quantities cost in their cuts, in minor units, by the rating of invoices.
SELECT q.number, round_by(v.rounding, r.exact * power(10::numeric, c.minor_units))::bigint
FROM unnest(%(tenants)s::uuid[], %(starts)s::timestamptz[], %(meters)s::text[],
    %(quantities)s::numeric[], %(befores)s::numeric[], %(wholes)s::numeric[]) WITH ORDINALITY
    AS q (tenant_id, starts_at, meter, quantity, before, whole, number)
JOIN usage_segment s ON s.tenant_id = q.tenant_id AND s.starts_at = q.starts_at
JOIN plan_version v ON v.plan = s.plan AND v.version = s.version
JOIN plan p ON p.plan = s.plan
JOIN currency c ON c.currency = p.currency
CROSS JOIN LATERAL rate_quantity(s.plan, s.version, q.meter, q.quantity, q.before, q.whole,
    extract(epoch FROM s.counted_until - s.counted_from),
    extract(epoch FROM s.period_ends_at - s.period_starts_at)) r

-- keep --
-- Amounts come in the major unit.
INSERT INTO forecast (tenant_id, period, percent, made_at, amount_minor, low_minor, high_minor,
    run_rate_minor)
SELECT k.tenant_id, k.period, k.percent, k.made_at, k.amount * m.minors, k.low * m.minors,
    k.high * m.minors, k.run_rate * m.minors
FROM unnest(%(tenants)s::uuid[], %(periods)s::text[], %(percents)s::integer[],
    %(moments)s::timestamptz[], %(amounts)s::numeric[], %(lows)s::numeric[], %(highs)s::numeric[],
    %(run_rates)s::numeric[])
    AS k (tenant_id, period, percent, made_at, amount, low, high, run_rate)
JOIN tenant t ON t.tenant_id = k.tenant_id
JOIN currency c ON c.currency = t.currency
CROSS JOIN LATERAL (SELECT power(10::numeric, c.minor_units) AS minors) AS m
ORDER BY k.tenant_id, k.period
ON CONFLICT DO NOTHING

-- lock_fillable --
-- On its own: a statement that waits for somebody who makes the invoice void still sees it as it was.
SELECT FROM forecast f
WHERE f.actual_minor IS NULL AND EXISTS (SELECT FROM invoice i WHERE i.tenant_id = f.tenant_id
    AND i.period = f.period AND i.status NOT IN ('draft', 'void'))
ORDER BY f.tenant_id, f.period, f.percent
FOR NO KEY UPDATE

-- fill_actuals --
UPDATE forecast f SET actual_minor = a.minor
FROM (
    SELECT i.tenant_id, i.period,
        COALESCE(sum(l.amount_minor) FILTER (WHERE l.kind <> 'correction'), 0)::bigint AS minor
    FROM invoice i
    LEFT JOIN invoice_line l ON l.tenant_id = i.tenant_id AND l.invoice_id = i.invoice_id
    WHERE i.status NOT IN ('draft', 'void') AND (i.tenant_id, i.period) IN (
        SELECT o.tenant_id, o.period FROM forecast o WHERE o.actual_minor IS NULL)
    GROUP BY i.tenant_id, i.invoice_id, i.period
) a
WHERE f.actual_minor IS NULL AND f.tenant_id = a.tenant_id AND f.period = a.period

-- accuracy --
SELECT t.currency, f.percent, count(*) AS count, sum(f.actual_minor)::bigint AS actual,
    sum(abs(f.amount_minor - f.actual_minor))::bigint AS missed,
    sum(f.amount_minor - f.actual_minor)::bigint AS drift,
    sum(abs(f.run_rate_minor - f.actual_minor))::bigint AS run_rate_missed,
    count(*) FILTER (WHERE f.actual_minor BETWEEN f.low_minor AND f.high_minor) AS covered
FROM forecast f
JOIN tenant t ON t.tenant_id = f.tenant_id
JOIN billing_period b ON b.tenant_id = f.tenant_id AND b.period = f.period
WHERE f.actual_minor IS NOT NULL AND b.ends_at > %(since)s
GROUP BY t.currency, f.percent
ORDER BY t.currency, f.percent
