-- Commission on what trades win and lose together: within a period, or beyond the highest that a
-- tenant ever reached.

ALTER TABLE plan_version ADD COLUMN commission_netting text NOT NULL DEFAULT 'none'
    CHECK (commission_netting IN ('none', 'period', 'hwm'));
ALTER TABLE plan_version ADD CHECK (commission_netting = 'none'
    OR commission_cap_per_trade_minor IS NULL);
COMMENT ON COLUMN plan_version.commission_netting IS
    'none: of each trade that won; period: of wins less losses; hwm: of what exceeds the '
    'high-water mark.';

CREATE TABLE commission_mark (
    tenant_id uuid NOT NULL,
    period text NOT NULL,
    cumulative numeric NOT NULL,
    mark numeric NOT NULL CHECK (mark >= 0 AND mark >= cumulative),
    PRIMARY KEY (tenant_id, period),
    FOREIGN KEY (tenant_id, period) REFERENCES billing_period
);
COMMENT ON TABLE commission_mark IS
    'Where tenants with a high-water mark stood at the end of each billed period, in the major unit.';
COMMENT ON COLUMN commission_mark.cumulative IS 'Won less lost since the tenant''s first trade.';
COMMENT ON COLUMN commission_mark.mark IS
    'The highest of it at the end of any stay on a plan so far; 0 at first.';

-- Where tenants stand before and after each stay of some periods, for those that have or had a plan
-- with a high-water mark. It goes on from the last period whose mark is stored and still holds: none
-- up to it is open again or has late trades. `anew`: from the first trade.
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

-- As before, for plans that take each trade alone. Where losses count, a later loss of a stay takes
-- back the latest gains first: `kept` is what was reached in a cut and not lost in a later one, and
-- the cut pays for what of it is above zero, or the mark, and above that of the cut before it.
CREATE OR REPLACE FUNCTION charge_commission(tenants uuid[], periods text[], until timestamptz)
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
            c.ends_at, c.seconds, c.period_seconds, m.minors, v.rounding,
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
    line AS (
        SELECT b.*, w.quantity, w.of_profit, divide(
            least(w.of_minor * b.period_seconds, b.cap_per_period * b.seconds),
            b.minors * b.period_seconds) AS exact
        FROM based b
        CROSS JOIN LATERAL (SELECT
            CASE b.netting WHEN 'none' THEN b.won ELSE b.trades END AS quantity,
            CASE b.netting WHEN 'none' THEN b.profit ELSE b.base END AS of_profit,
            CASE b.netting WHEN 'none' THEN b.minor
                ELSE b.base * b.rate * (1 - b.discount) * b.minors END AS of_minor OFFSET 0) AS w
        WHERE b.rate > 0 AND w.quantity > 0
    )
    SELECT l.tenant_id, l.period, 'commission/' || to_char(
            l.starts_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
        'commission', NULL, l.starts_at, l.ends_at, l.quantity, l.exact,
        round_by(l.rounding, l.exact * l.minors)::bigint,
        jsonb_build_object('plan', l.plan, 'version', l.version,
            'profit', trim_scale(l.of_profit)::text, 'volume', trim_scale(l.volume)::text,
            'rate', trim_scale(l.rate)::text, 'discount', trim_scale(l.discount)::text,
            'capPerTradeMinor', l.cap_per_trade, 'capPerPeriodMinor', l.cap_per_period)
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

-- As before; and a late trade of a tenant with a high-water mark changes what came after it too.
CREATE OR REPLACE FUNCTION trade_commission_late() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM mark_late(ARRAY[NEW.tenant_id], ARRAY[NEW.closed_at], ARRAY[CASE WHEN EXISTS (
            SELECT FROM subscription_phase s JOIN plan_version v ON v.plan = s.plan
            WHERE s.tenant_id = NEW.tenant_id AND v.commission_netting = 'hwm')
        THEN 'infinity' ELSE NEW.closed_at END]);
    RETURN NULL;
END $$;

SELECT secure_tenant_tables();
SELECT grant_writes('botplane_billing', 'INSERT, UPDATE', ARRAY['commission_mark']);
SELECT grant_writes('botplane_tenant', 'SELECT', ARRAY['commission_mark']);
