-- plan_currency --
-- Currency of a plan, if it is published.
SELECT currency FROM plan WHERE plan = %(plan)s

-- lock_account --
-- Of a tenant that is being registered there is no row yet that its closing could wait for.
SELECT pg_advisory_xact_lock(hashtextextended('tenant/' || %(tenant_id)s::text, 0))

-- fixed_terms --
-- What a tenant was registered with and cannot change, its limit, and when it closed.
SELECT currency, time_zone, anchor_day, spend_limit, closed_at FROM tenant
WHERE tenant_id = %(tenant_id)s FOR NO KEY UPDATE

-- use_time_zone --
-- Fails for a zone that Postgres does not know; its list of names would take 50 ms to read.
SELECT now() AT TIME ZONE %(time_zone)s

-- upsert_tenant --
-- Changes no row when nothing differs.
INSERT INTO tenant AS t (tenant_id, name, namespace, currency, time_zone, anchor_day, spend_limit,
    registered_at)
VALUES (%(tenant_id)s, %(name)s, %(namespace)s, %(currency)s, %(time_zone)s, %(anchor_day)s,
    %(spend_limit)s, %(now)s)
ON CONFLICT (tenant_id) DO UPDATE
SET name = excluded.name, namespace = excluded.namespace, spend_limit = excluded.spend_limit
WHERE (t.name, t.namespace, t.spend_limit)
    IS DISTINCT FROM (excluded.name, excluded.namespace, excluded.spend_limit)

-- upsert_profile --
-- Changes no row when nothing differs.
INSERT INTO tenant_profile AS p (tenant_id, organization_name, admin_email)
VALUES (%(tenant_id)s, %(organization_name)s, %(admin_email)s)
ON CONFLICT (tenant_id) DO UPDATE
SET organization_name = excluded.organization_name, admin_email = excluded.admin_email
WHERE (p.organization_name, p.admin_email)
    IS DISTINCT FROM (excluded.organization_name, excluded.admin_email)

-- audit --
SELECT audit_append('tenant/' || %(tenant_id)s, 'tenant-reconciler', %(action)s, %(object)s,
    %(payload)s, %(now)s)

-- current_phase --
SELECT plan, starts_at FROM subscription_phase
WHERE tenant_id = %(tenant_id)s AND ends_at IS NULL

-- open_phase --
INSERT INTO subscription_phase (tenant_id, starts_at, plan)
VALUES (%(tenant_id)s, %(starts_at)s, %(plan)s)

-- end_phase --
UPDATE subscription_phase SET ends_at = %(ends_at)s
WHERE tenant_id = %(tenant_id)s AND ends_at IS NULL

-- replace_phase --
-- A phase that has not begun changes its plan.
UPDATE subscription_phase SET plan = %(plan)s
WHERE tenant_id = %(tenant_id)s AND ends_at IS NULL

-- drop_phase --
-- A phase that never began is not billed.
DELETE FROM subscription_phase WHERE tenant_id = %(tenant_id)s AND starts_at >= %(now)s

-- open_tenants --
SELECT tenant_id, name FROM tenant WHERE closed_at IS NULL

-- close_tenant --
-- Changes no row when the tenant is closed or was never registered.
UPDATE tenant SET closed_at = %(now)s WHERE tenant_id = %(tenant_id)s AND closed_at IS NULL
