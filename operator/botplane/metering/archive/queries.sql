-- ensure_periods --
SELECT ensure_periods(%(now)s)

-- months --
-- Months whose time is over and of which no file has all rows; all of them, or whether it is one.
SELECT m.part, m.relation, m.starts_at, m.ends_at
FROM months_over(%(now)s) m
LEFT JOIN archived_usage a ON a.part = m.part
CROSS JOIN LATERAL month_sums(m.relation, m.starts_at, m.ends_at) s
WHERE (s.rows, s.quantity) IS DISTINCT FROM (a.rows, a.quantity)
    AND (%(part)s::text IS NULL OR m.part = %(part)s)
ORDER BY m.part

-- one_moment --
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ

-- hold --
-- Before the moment that is read: what is dropped after that would look empty.
LOCK TABLE ONLY usage_event, ONLY usage_hourly, ONLY runtime_interval IN ACCESS SHARE MODE

-- alone --
SELECT pg_try_advisory_xact_lock(hashtextextended('archive', 0))

-- in_utc --
SELECT set_config('timezone', 'UTC', true), set_config('datestyle', 'ISO', true)

-- usage_event --
COPY (SELECT u.* FROM usage_event u
    WHERE u.occurred_at >= %(starts_at)s AND u.occurred_at < %(ends_at)s
    ORDER BY u.tenant_id, u.occurred_at) TO STDOUT (FORMAT csv, HEADER)

-- usage_hourly --
COPY (SELECT u.* FROM usage_hourly u WHERE u.hour >= %(starts_at)s AND u.hour < %(ends_at)s
    ORDER BY u.tenant_id, u.hour) TO STDOUT (FORMAT csv, HEADER)

-- runtime_interval --
COPY (SELECT i.* FROM runtime_interval i
    WHERE i.ended_at >= %(starts_at)s AND i.ended_at < %(ends_at)s
    ORDER BY i.tenant_id, i.ended_at) TO STDOUT (FORMAT csv, HEADER)

-- note --
INSERT INTO archived_usage AS a (part, relation, starts_at, ends_at, rows, quantity, sha256,
    archived_at)
SELECT %(part)s, %(relation)s, %(starts_at)s, %(ends_at)s, s.rows, s.quantity, %(sha256)s, %(now)s
FROM month_sums(%(relation)s, %(starts_at)s, %(ends_at)s) s
ON CONFLICT (part) DO UPDATE SET rows = excluded.rows, quantity = excluded.quantity,
    sha256 = excluded.sha256, archived_at = excluded.archived_at
RETURNING a.rows

-- audit --
SELECT audit_append('system', %(actor)s, 'archive', %(part)s,
    jsonb_build_object('rows', %(rows)s::bigint, 'sha256', %(sha256)s::text), %(now)s)
