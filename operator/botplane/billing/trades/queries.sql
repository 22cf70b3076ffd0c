-- insert_trades --
-- A repeated id changes nothing, except that it may bring the rate that a held trade waits for.
-- Rows of one batch with the same id: the first counts.
INSERT INTO trade_commission AS t (tenant_id, trade_id, bot_id, closed_at, pnl, volume, currency,
    fx_rate, fx_source, fx_at, received_at)
SELECT DISTINCT ON (g.tenant_id, g.trade_id) g.tenant_id, g.trade_id, g.bot_id, g.closed_at, g.pnl,
    g.volume, COALESCE(g.currency, n.currency),
    CASE WHEN COALESCE(g.currency, n.currency) = n.currency THEN 1 ELSE g.fx_rate END,
    CASE WHEN g.currency <> n.currency THEN g.fx_source END,
    CASE WHEN g.currency <> n.currency THEN g.fx_at END, %(now)s
FROM jsonb_to_recordset(%(trades)s) AS g (position integer, tenant_id uuid, trade_id text,
    bot_id uuid, closed_at timestamptz, pnl numeric, volume numeric, currency text,
    fx_rate numeric, fx_source text, fx_at timestamptz)
JOIN tenant n ON n.tenant_id = g.tenant_id
ORDER BY g.tenant_id, g.trade_id, g.position
ON CONFLICT (tenant_id, trade_id) DO UPDATE
SET fx_rate = excluded.fx_rate, fx_source = excluded.fx_source, fx_at = excluded.fx_at
WHERE t.fx_rate IS NULL AND excluded.fx_rate IS NOT NULL
    AND (t.closed_at, t.pnl, t.volume, t.currency)
        = (excluded.closed_at, excluded.pnl, excluded.volume, excluded.currency)
RETURNING t.tenant_id, t.trade_id

-- compare_trades --
-- What was given against what is stored, in the order given.
SELECT g.tenant_id, g.trade_id,
    (t.closed_at, t.pnl, t.volume, t.currency, t.bot_id) IS NOT DISTINCT FROM (g.closed_at,
        g.pnl::numeric(38, 18), g.volume::numeric(38, 18),
        COALESCE(g.currency, n.currency)::char(3), g.bot_id) AS same
FROM jsonb_to_recordset(%(trades)s) AS g (position integer, tenant_id uuid, trade_id text,
    bot_id uuid, closed_at timestamptz, pnl numeric, volume numeric, currency text)
LEFT JOIN tenant n ON n.tenant_id = g.tenant_id
LEFT JOIN trade_commission t ON t.tenant_id = g.tenant_id AND t.trade_id = g.trade_id
ORDER BY g.position

-- set_rate --
UPDATE trade_commission SET fx_rate = %(rate)s, fx_source = %(source)s, fx_at = %(day)s
WHERE tenant_id = %(tenant_id)s AND currency = %(currency)s AND fx_rate IS NULL
    AND closed_at >= %(day)s AND closed_at < %(day)s::timestamptz + interval '24 hours'

-- held_trades --
SELECT count(*) FROM trade_commission WHERE fx_rate IS NULL
