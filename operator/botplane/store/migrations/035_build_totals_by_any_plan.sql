-- As before, but whatever way Postgres joins: it may ask which intervals lie in a cut before it has
-- seen that there is no such cut, because its plan began after the period had ended.
CREATE OR REPLACE FUNCTION segment_usage(tenants uuid[], periods text[])
RETURNS TABLE (tenant_id uuid, starts_at timestamptz, meter text, bot_id uuid, quantity numeric)
LANGUAGE sql STABLE AS $$
    SELECT m.tenant_id, m.starts_at, m.meter, m.bot_id, m.quantity
    FROM metered(tenants, periods, '-infinity') m
    UNION ALL
    SELECT c.tenant_id, c.starts_at, m.meter, i.bot_id, m.quantity
    FROM cut(tenants, periods) c
    JOIN runtime_interval i ON i.tenant_id = c.tenant_id AND i.ended_at IS NOT NULL
        AND tstzrange(i.started_at, i.ended_at)
            && tstzrange(c.starts_at, greatest(c.starts_at, c.ends_at))
    CROSS JOIN LATERAL interval_meters(extract(epoch FROM least(i.ended_at, c.ends_at)
        - greatest(i.started_at, c.starts_at)), i.container, i.cpu_milli, i.mem_bytes,
        i.storage_bytes) m
$$;
