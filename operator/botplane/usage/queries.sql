-- ensure_periods --
-- Writes only when a month has turned somewhere.
SELECT ensure_periods(%(now)s)

-- named_period --
-- A period of a tenant by name, or the one that holds the moment; open tenants come first.
SELECT b.tenant_id, b.period, t.currency
FROM tenant t JOIN billing_period b ON b.tenant_id = t.tenant_id
WHERE t.name = %(tenant)s AND CASE WHEN %(period)s::text IS NULL
    THEN b.starts_at <= %(now)s AND b.ends_at > %(now)s ELSE b.period = %(period)s END
ORDER BY t.closed_at DESC NULLS FIRST
LIMIT 1

-- period_names --
-- First and last period of a tenant; no row for an unknown tenant.
SELECT min(b.period), max(b.period) FROM tenant t
LEFT JOIN billing_period b ON b.tenant_id = t.tenant_id
WHERE t.name = %(tenant)s
GROUP BY t.tenant_id ORDER BY t.closed_at DESC NULLS FIRST LIMIT 1

-- usage_by_bot --
-- Usage charges are spread over bots by their share of the quantity, so that they add up.
WITH used AS (
    SELECT * FROM metered(ARRAY[%(tenant_id)s::uuid], ARRAY[%(period)s::text], %(now)s)
),
by_bot AS (
    SELECT u.bot_id,
        COALESCE(sum(u.quantity) FILTER (WHERE u.meter = 'bot_seconds'), 0) AS seconds,
        COALESCE(sum(u.quantity) FILTER (WHERE u.meter = 'storage_gb_hours'), 0) AS gb_hours,
        COALESCE(sum(c.exact * u.quantity / c.quantity), 0) AS cost
    FROM used u
    LEFT JOIN charge(ARRAY[%(tenant_id)s::uuid], ARRAY[%(period)s::text], %(now)s) c
        ON c.meter = u.meter AND c.starts_at = u.starts_at
    GROUP BY u.bot_id
),
pods AS (
    SELECT i.bot_id, count(DISTINCT i.pod_uid) AS pods
    FROM billing_period b JOIN runtime_interval i ON i.tenant_id = b.tenant_id
        AND tstzrange(i.started_at, i.ended_at) && tstzrange(b.starts_at, b.ends_at)
    WHERE b.tenant_id = %(tenant_id)s AND b.period = %(period)s AND i.started_at < %(now)s
        AND i.storage_bytes = 0
    GROUP BY i.bot_id
),
running AS (
    SELECT i.bot_id, count(*) AS running FROM runtime_interval i
    WHERE i.tenant_id = %(tenant_id)s AND i.container = 'bot' AND i.ended_at IS NULL
    GROUP BY i.bot_id
)
SELECT COALESCE(b.name, '') AS bot, COALESCE(sum(p.pods), 0)::integer AS pods,
    COALESCE(sum(u.seconds), 0)::bigint AS seconds, COALESCE(sum(r.running), 0)::integer AS running,
    trim_scale(billed_quantity(COALESCE(sum(u.gb_hours), 0))) AS storage_gb_hours,
    COALESCE(sum(u.cost), 0)::numeric(38, 18) AS cost
FROM (SELECT * FROM bot WHERE bot.tenant_id = %(tenant_id)s) b
FULL JOIN by_bot u ON u.bot_id = b.bot_id
LEFT JOIN pods p ON p.bot_id = COALESCE(b.bot_id, u.bot_id)
LEFT JOIN running r ON r.bot_id = COALESCE(b.bot_id, u.bot_id)
WHERE b.deleted_at IS NULL OR u.bot_id IS NOT NULL
GROUP BY 1 ORDER BY 1

-- metered_time --
SELECT complete_until FROM source_watermark WHERE source = 'metering'

-- unsegmented --
-- Open tenants without totals of the period that runs now: their first, a new month, a changed plan.
SELECT t.tenant_id FROM tenant t
WHERE t.closed_at IS NULL
    AND EXISTS (SELECT FROM subscription_phase p
        WHERE p.tenant_id = t.tenant_id AND p.starts_at <= %(now)s)
    AND NOT EXISTS (SELECT FROM usage_segment s WHERE s.tenant_id = t.tenant_id
        AND s.period_starts_at <= %(now)s AND s.period_ends_at > %(now)s)
ORDER BY t.tenant_id

-- periods_of --
SELECT b.tenant_id, b.period FROM billing_period b
WHERE b.tenant_id = ANY(%(tenants)s) AND b.starts_at <= %(now)s AND b.ends_at > %(now)s

-- build_segments --
SELECT build_segments(%(tenants)s::uuid[], %(periods)s::text[])

-- one_moment --
-- Prices that change meanwhile drop the totals: what is read after them would be nothing used.
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ

-- read_at_once --
-- Enough for the sums of ten thousand tenants to stay out of temporary files; and all of a table is
-- read at once, not row by row.
SELECT set_config('work_mem', '64MB', true), set_config('jit', 'off', true),
    set_config('enable_nestloop', 'off', true)

-- terms --
-- The running period of each tenant: its bounds, its fee, its one-off charges, and its limit with
-- the credits that may pay for it. Amounts are in the major unit.
SELECT s.tenant_id, t.name AS tenant, s.period, s.period_starts_at AS starts_at,
    s.period_ends_at AS ends_at, t.currency, u.minor_units AS digits,
    sum(divide(v.fee_minor * extract(epoch FROM s.ends_at - s.starts_at), m.minors
        * extract(epoch FROM s.period_ends_at - s.period_starts_at))) AS fee,
    trim_scale(COALESCE((SELECT sum(o.amount_minor) FROM one_off o
        WHERE o.tenant_id = s.tenant_id AND o.period = s.period), 0) / m.minors) AS one_offs,
    trim_scale(t.spend_limit + COALESCE((SELECT sum(c.amount_minor) FROM credit_grant c
        WHERE c.tenant_id = s.tenant_id AND c.granted_at >= s.period_starts_at
            AND c.granted_at <= %(now)s
            AND (c.expires_at IS NULL OR c.expires_at >= s.period_ends_at)), 0) / m.minors)
        AS spend_limit
FROM usage_segment s
JOIN tenant t ON t.tenant_id = s.tenant_id
JOIN plan_version v ON v.plan = s.plan AND v.version = s.version
JOIN currency u ON u.currency = t.currency
CROSS JOIN LATERAL (SELECT power(10::numeric, u.minor_units) AS minors) AS m
WHERE t.closed_at IS NULL AND s.period_starts_at <= %(now)s AND s.period_ends_at > %(now)s
    AND (%(tenants)s::uuid[] IS NULL OR s.tenant_id = ANY(%(tenants)s::uuid[]))
GROUP BY s.tenant_id, t.name, s.period, s.period_starts_at, s.period_ends_at, t.currency,
    u.minor_units, t.spend_limit, m.minors

-- commissions --
-- Commission so far of the tenants that traded in the running period; final when it is billed.
WITH traded AS (
    SELECT DISTINCT s.tenant_id, s.period FROM usage_segment s
    JOIN trade_commission c ON c.tenant_id = s.tenant_id
        AND c.closed_at >= s.period_starts_at AND c.closed_at < s.period_ends_at
    WHERE s.period_starts_at <= %(now)s AND s.period_ends_at > %(now)s
        AND (%(tenants)s::uuid[] IS NULL OR s.tenant_id = ANY(%(tenants)s::uuid[]))
)
SELECT c.tenant_id, sum(c.exact)
FROM charge_commission(ARRAY(SELECT tenant_id FROM traded ORDER BY tenant_id),
    ARRAY(SELECT period FROM traded ORDER BY tenant_id), %(now)s) c
GROUP BY c.tenant_id

-- standing --
-- From the totals and what runs now: one row per tenant and meter (bot_id null), and one per bot
-- with its running time and its share of the usage charges. Amounts are those of charge(), computed
-- with fewer digits where the quotient is the same.
WITH segment AS MATERIALIZED (
    SELECT s.tenant_id, s.starts_at, s.ends_at, s.plan, s.version,
        extract(epoch FROM s.period_ends_at - s.period_starts_at) AS period_seconds,
        extract(epoch FROM s.counted_until - s.counted_from) AS seconds, s.counted_from,
        s.counted_until, s.counted_from = s.starts_at AND s.counted_until = s.ends_at AS is_alone,
        count(*) OVER (PARTITION BY s.tenant_id) = 1 AS is_whole, s.ends_at > %(now)s AS is_now
    FROM usage_segment s JOIN tenant t ON t.tenant_id = s.tenant_id
    WHERE t.closed_at IS NULL AND s.period_starts_at <= %(now)s AND s.period_ends_at > %(now)s
        AND (%(tenants)s::uuid[] IS NULL OR s.tenant_id = ANY(%(tenants)s::uuid[]))
),
wanted AS MATERIALIZED (
    SELECT v.plan, v.version, m.meter FROM plan_version v CROSS JOIN meter m
    WHERE %(tenants)s::uuid[] IS NOT NULL OR m.meter IN ('bot_seconds', 'rpc_calls')
        OR EXISTS (SELECT FROM price p WHERE p.plan = v.plan AND p.meter = m.meter)
),
used AS MATERIALIZED (
    SELECT t.tenant_id, t.starts_at, t.meter, t.bot_id, t.quantity
    FROM usage_total t
    JOIN segment s ON s.tenant_id = t.tenant_id AND s.starts_at = t.starts_at
    JOIN wanted w ON w.plan = s.plan AND w.version = s.version AND w.meter = t.meter
    UNION ALL
    SELECT i.tenant_id, s.starts_at, w.meter, i.bot_id, CASE w.meter
        WHEN 'bot_seconds' THEN r.seconds
        WHEN 'cpu_core_seconds' THEN r.seconds * i.cpu_milli * 0.001
        WHEN 'storage_gb_hours' THEN gb_hours(r.seconds * i.storage_bytes)
        ELSE r.seconds * i.mem_bytes * 0.000000000931322574615478515625 END
    FROM runtime_interval i
    JOIN segment s ON s.tenant_id = i.tenant_id
    JOIN wanted w ON w.plan = s.plan AND w.version = s.version
        AND w.meter IN ('bot_seconds', 'cpu_core_seconds', 'memory_gib_seconds',
            'storage_gb_hours')
        AND (w.meter <> 'bot_seconds' OR i.container = 'bot')
        AND (w.meter = 'storage_gb_hours') = (i.storage_bytes > 0)
    CROSS JOIN LATERAL (SELECT extract(epoch FROM least(s.ends_at, %(now)s)
        - greatest(i.started_at, s.starts_at)) AS seconds) AS r
    WHERE i.ended_at IS NULL AND greatest(i.started_at, s.starts_at) < least(s.ends_at, %(now)s)
),
metered AS MATERIALIZED (
    SELECT u.tenant_id, u.starts_at, u.meter,
        trim_scale(billed_quantity(sum(u.quantity))) AS quantity
    FROM used u GROUP BY u.tenant_id, u.starts_at, u.meter HAVING sum(u.quantity) > 0
),
-- Cuts that share a count: what was used in it before, and in all; also where nothing was since.
shared AS MATERIALIZED (
    SELECT s.tenant_id, s.starts_at, u.meter, sum(u.quantity) AS whole,
        COALESCE(sum(u.quantity) FILTER (WHERE u.starts_at < s.starts_at), 0) AS before,
        COALESCE(sum(u.quantity) FILTER (WHERE u.starts_at = s.starts_at), 0) AS quantity
    FROM segment s
    JOIN metered u ON u.tenant_id = s.tenant_id AND u.starts_at >= s.counted_from
        AND u.starts_at < s.counted_until
    WHERE NOT s.is_alone
    GROUP BY s.tenant_id, s.starts_at, u.meter
),
counted AS MATERIALIZED (
    SELECT u.tenant_id, u.starts_at, u.meter, u.quantity, 0::numeric AS before, u.quantity AS whole
    FROM metered u JOIN segment s ON s.tenant_id = u.tenant_id AND s.starts_at = u.starts_at
    WHERE s.is_alone
    UNION ALL
    SELECT h.tenant_id, h.starts_at, h.meter, h.quantity, h.before, h.whole
    FROM shared h WHERE h.quantity > 0 OR h.before > 0
),
priced AS MATERIALIZED (
    SELECT p.plan, p.version, p.meter, p.model, trim_scale(p.unit_size) AS unit_size,
        trim_scale(p.included) AS included, p.on_exceed = 'block' AS is_hard, z.tiers,
        trim_scale(z.unit_price) AS unit_price, z.flat_minor, power(10::numeric, u.minor_units) AS minors
    FROM price p
    JOIN plan l ON l.plan = p.plan
    JOIN currency u ON u.currency = l.currency
    CROSS JOIN LATERAL (SELECT count(*) AS tiers, min(t.unit_price)::numeric AS unit_price,
        min(t.flat_fee_minor)::numeric AS flat_minor FROM price_tier t
        WHERE t.plan = p.plan AND t.version = p.version AND t.meter = p.meter) AS z
),
line AS MATERIALIZED (
    SELECT u.tenant_id, u.starts_at, u.meter, u.quantity, i.included, s.is_whole, s.counted_from,
        COALESCE(p.is_hard AND s.is_now, false) AS is_hard,
        COALESCE(0.000000000000000001 * CASE
            WHEN 2 * r.r > d.d OR (2 * r.r = d.d AND mod(r.q, 2) <> 0) THEN r.q + 1
            ELSE r.q END, 0) AS exact
    FROM counted u
    JOIN segment s ON s.tenant_id = u.tenant_id AND s.starts_at = u.starts_at
    LEFT JOIN priced p ON p.plan = s.plan AND p.version = s.version AND p.meter = u.meter
    CROSS JOIN LATERAL (SELECT CASE WHEN s.seconds = s.period_seconds THEN p.included
        ELSE div(p.included * s.seconds * 1000000000000, s.period_seconds) * 0.000000000001
        END AS included OFFSET 0) AS i
    CROSS JOIN LATERAL (SELECT
        CASE WHEN u.before = 0 THEN 0 ELSE greatest(u.before - i.included, 0) END AS low,
        greatest(u.before + u.quantity - i.included, 0) AS high OFFSET 0) AS b
    LEFT JOIN LATERAL (
        SELECT COALESCE(sum(w.units * trim_scale(t.unit_price)), 0) AS units,
            COALESCE(sum(t.flat_fee_minor) FILTER (WHERE w.is_entered), 0) AS flat_minor
        FROM price_tier t
        CROSS JOIN LATERAL part_of_tier(p.model, p.unit_size, b.low, b.high,
            greatest(u.whole - i.included, 0), t.lo, t.hi) AS w
        WHERE p.tiers > 1 AND b.high > b.low
            AND t.plan = p.plan AND t.version = p.version AND t.meter = p.meter
    ) AS m ON true
    CROSS JOIN LATERAL (SELECT
        CASE WHEN p.tiers > 1 THEN m.flat_minor WHEN b.low = 0 AND b.high > 0 THEN p.flat_minor
            ELSE 0 END AS flat_minor,
        CASE WHEN b.high = b.low OR p.model = 'flat' THEN 0 WHEN p.tiers > 1 THEN m.units
            WHEN p.model <> 'package' THEN p.unit_price * (b.high - b.low)
            ELSE p.unit_price * (units_of_tier(p.model, p.unit_size, b.high, 0, NULL)
                - units_of_tier(p.model, p.unit_size, b.low, 0, NULL)) END AS units OFFSET 0) AS t
    -- As divide() does, written out: a call of it for each line would take half of the time.
    CROSS JOIN LATERAL (SELECT
        CASE WHEN t.flat_minor = 0 THEN t.units ELSE t.units * p.minors * s.period_seconds
            + t.flat_minor * s.seconds * p.unit_size END * 1000000000000000000 AS n,
        CASE WHEN t.flat_minor = 0 THEN p.unit_size
            ELSE p.minors * s.period_seconds * p.unit_size END AS d OFFSET 0) AS d
    CROSS JOIN LATERAL (SELECT div(d.n, d.d) AS q OFFSET 0) AS q
    CROSS JOIN LATERAL (SELECT q.q, d.n - q.q * d.d AS r OFFSET 0) AS r
),
share AS MATERIALIZED (
    SELECT l.tenant_id, l.starts_at, l.meter, l.exact / l.quantity AS factor
    FROM line l WHERE l.exact > 0
),
-- Of a count, what its last cut includes.
tally AS (
    SELECT l.tenant_id, l.meter, sum(l.quantity) AS quantity, sum(l.exact) AS exact,
        (array_agg(l.included ORDER BY l.starts_at DESC))[1] AS included, bool_or(l.is_hard) AS is_hard
    FROM line l WHERE NOT l.is_whole GROUP BY l.tenant_id, l.meter, l.counted_from
)
SELECT l.tenant_id, NULL::uuid AS bot_id, l.meter, l.quantity, l.included,
    l.exact::numeric(38, 18) AS cost, l.is_hard
FROM line l WHERE l.is_whole
UNION ALL
SELECT c.tenant_id, NULL, c.meter, sum(c.quantity), sum(c.included), sum(c.exact)::numeric(38, 18),
    bool_or(c.is_hard)
FROM tally c GROUP BY c.tenant_id, c.meter
UNION ALL
SELECT u.tenant_id, u.bot_id, NULL,
    COALESCE(sum(u.quantity) FILTER (WHERE u.meter = 'bot_seconds'), 0), NULL,
    COALESCE(sum(u.quantity * h.factor), 0)::numeric(38, 18), false
FROM used u
LEFT JOIN share h ON h.tenant_id = u.tenant_id AND h.starts_at = u.starts_at AND h.meter = u.meter
WHERE u.bot_id <> '00000000-0000-0000-0000-000000000000'
GROUP BY u.tenant_id, u.bot_id

-- totals_that_differ --
-- Where totals are not what intervals and events say: nowhere, ever.
WITH kept AS (
    SELECT array_agg(k.tenant_id ORDER BY k.tenant_id, k.period) AS tenants,
        array_agg(k.period ORDER BY k.tenant_id, k.period) AS periods
    FROM (SELECT DISTINCT s.tenant_id, s.period FROM usage_segment s) k
),
truth AS (
    SELECT u.tenant_id, u.starts_at, u.meter, u.bot_id, sum(u.quantity) AS quantity
    FROM kept CROSS JOIN LATERAL segment_usage(kept.tenants, kept.periods) u
    GROUP BY u.tenant_id, u.starts_at, u.meter, u.bot_id
)
SELECT tenant_id, starts_at, meter, bot_id, t.quantity, r.quantity
FROM usage_total t FULL JOIN truth r USING (tenant_id, starts_at, meter, bot_id)
WHERE COALESCE(t.quantity, 0) <> COALESCE(r.quantity, 0)

-- open_tenant --
SELECT tenant_id FROM tenant WHERE name = %(tenant)s AND closed_at IS NULL

-- note_limits --
-- Each warning once per period; returns those that are new. Where the highest that is due was given,
-- the lower ones were given before it or with it.
WITH near AS (
    SELECT u.*, CASE WHEN u.used >= u.limit_value THEN 100
        WHEN u.used * 100 >= u.limit_value * 90 THEN 90
        WHEN u.used * 100 >= u.limit_value * 80 THEN 80 ELSE 50 END AS due
    FROM unnest(%(tenants)s::uuid[], %(periods)s::text[], %(scopes)s::text[], %(used)s::numeric[],
        %(limits)s::numeric[]) AS u (tenant_id, period, scope, used, limit_value)
    WHERE u.used * 100 >= u.limit_value * 50
)
INSERT INTO limit_notice AS n (tenant_id, period, scope, percent, used, limit_value, noticed_at)
SELECT u.tenant_id, u.period, u.scope, p.percent, u.used, u.limit_value, %(now)s
FROM near u
CROSS JOIN unnest(ARRAY[50, 80, 90, 100]) AS p (percent)
WHERE p.percent <= u.due
    AND NOT EXISTS (SELECT FROM limit_notice k WHERE k.tenant_id = u.tenant_id
        AND k.period = u.period AND k.scope = u.scope AND k.percent = u.due)
ORDER BY u.tenant_id, u.period, u.scope, p.percent
ON CONFLICT DO NOTHING
RETURNING n.tenant_id, n.period, n.scope, n.percent, n.used, n.limit_value

-- block_spenders --
INSERT INTO spend_block (tenant_id, scope, blocked_at, period, used, limit_value)
SELECT u.tenant_id, u.scope, %(now)s, u.period, u.used, u.limit_value
FROM unnest(%(tenants)s::uuid[], %(periods)s::text[], %(scopes)s::text[], %(used)s::numeric[],
    %(limits)s::numeric[]) AS u (tenant_id, period, scope, used, limit_value)
WHERE u.used >= u.limit_value
    AND NOT EXISTS (SELECT FROM spend_block b WHERE b.tenant_id = u.tenant_id
        AND b.scope = u.scope AND b.cleared_at IS NULL)
ORDER BY u.tenant_id, u.scope
ON CONFLICT DO NOTHING

-- clear_spenders --
-- Room is there again at once when something happened: a new period, a higher limit, none any more,
-- a credit. Otherwise well below the limit, and not before ten minutes.
UPDATE spend_block b SET cleared_at = greatest(%(now)s, b.blocked_at)
FROM (SELECT k.tenant_id, k.scope, k.blocked_at, u.period, u.used, u.limit_value
    FROM spend_block k
    JOIN unnest(%(standing)s::uuid[]) AS s (tenant_id) ON s.tenant_id = k.tenant_id
    LEFT JOIN unnest(%(tenants)s::uuid[], %(periods)s::text[], %(scopes)s::text[],
            %(used)s::numeric[], %(limits)s::numeric[])
        AS u (tenant_id, period, scope, used, limit_value)
        ON u.tenant_id = k.tenant_id AND u.scope = k.scope
    WHERE k.cleared_at IS NULL) u
WHERE b.tenant_id = u.tenant_id AND b.scope = u.scope AND b.blocked_at = u.blocked_at
    AND b.cleared_at IS NULL AND (u.limit_value IS NULL
        OR (u.used < u.limit_value AND (u.period <> b.period OR u.limit_value > b.limit_value
            OR (u.used * 100 < u.limit_value * 95
                AND b.blocked_at <= %(now)s::timestamptz - interval '10 minutes'))))

-- refused --
SELECT b.tenant_id, b.scope, b.blocked_at, b.limit_value, t.currency FROM spend_block b
JOIN tenant t ON t.tenant_id = b.tenant_id WHERE b.cleared_at IS NULL

-- open_blocks --
SELECT b.tenant_id, b.scope, b.blocked_at FROM spend_block b WHERE b.cleared_at IS NULL
