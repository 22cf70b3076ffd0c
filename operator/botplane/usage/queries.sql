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
    GROUP BY i.bot_id
),
running AS (
    SELECT i.bot_id, count(*) AS running FROM runtime_interval i
    WHERE i.tenant_id = %(tenant_id)s AND i.container = 'bot' AND i.ended_at IS NULL
    GROUP BY i.bot_id
)
SELECT COALESCE(b.name, '') AS bot, COALESCE(sum(p.pods), 0)::integer AS pods,
    COALESCE(sum(u.seconds), 0)::bigint AS seconds, COALESCE(sum(r.running), 0)::integer AS running,
    COALESCE(sum(u.cost), 0)::numeric(38, 18) AS cost
FROM (SELECT * FROM bot WHERE bot.tenant_id = %(tenant_id)s) b
FULL JOIN by_bot u ON u.bot_id = b.bot_id
LEFT JOIN pods p ON p.bot_id = COALESCE(b.bot_id, u.bot_id)
LEFT JOIN running r ON r.bot_id = COALESCE(b.bot_id, u.bot_id)
WHERE b.deleted_at IS NULL OR u.bot_id IS NOT NULL
GROUP BY 1 ORDER BY 1

-- current_periods --
SELECT b.tenant_id, b.period, b.starts_at FROM billing_period b
JOIN tenant t ON t.tenant_id = b.tenant_id
WHERE t.closed_at IS NULL AND b.starts_at <= %(now)s AND b.ends_at > %(now)s

-- metered_time --
SELECT complete_until FROM source_watermark WHERE source = 'metering'

-- standing --
-- One row per bot with its share of the usage charges, and one per tenant (bot_id null) with all
-- its charges: the fee of the period and the usage so far, unrounded; a commitment is settled later.
WITH used AS MATERIALIZED (
    SELECT * FROM metered(%(tenants)s, %(periods)s, %(now)s)
),
line AS MATERIALIZED (
    SELECT * FROM charge(%(tenants)s, %(periods)s, %(now)s) WHERE kind <> 'commitment'
)
SELECT l.tenant_id, NULL::uuid AS bot_id, 0::numeric AS bot_seconds, 0::numeric AS rpc_calls,
    sum(l.exact)::numeric(38, 18) AS cost
FROM line l GROUP BY l.tenant_id
UNION ALL
SELECT u.tenant_id, u.bot_id,
    COALESCE(sum(u.quantity) FILTER (WHERE u.meter = 'bot_seconds'), 0),
    COALESCE(sum(u.quantity) FILTER (WHERE u.meter = 'rpc_calls'), 0),
    COALESCE(sum(l.exact * u.quantity / l.quantity), 0)::numeric(38, 18)
FROM (
    SELECT tenant_id, bot_id, meter, starts_at, sum(quantity) AS quantity
    FROM used GROUP BY tenant_id, bot_id, meter, starts_at
) u
LEFT JOIN line l ON l.tenant_id = u.tenant_id AND l.meter = u.meter AND l.starts_at = u.starts_at
GROUP BY u.tenant_id, u.bot_id
