-- An issued invoice that was wrong as a whole becomes void; its period is billed again.

ALTER TABLE billing_period ADD COLUMN revision integer NOT NULL DEFAULT 0 CHECK (revision >= 0);
COMMENT ON COLUMN billing_period.revision IS 'How many of its invoices were made void.';
ALTER TABLE invoice ADD COLUMN revision integer NOT NULL DEFAULT 0 CHECK (revision >= 0);
COMMENT ON COLUMN invoice.revision IS 'That of its period when it was issued.';
CREATE UNIQUE INDEX invoice_void ON invoice (tenant_id, period, revision) WHERE status = 'void';

-- As before; and a closed period opens again, as its next revision, once its invoice is void.
CREATE OR REPLACE FUNCTION billing_period_guard() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    is_fixed boolean := (NEW.tenant_id, NEW.period, NEW.starts_at, NEW.ends_at)
        IS DISTINCT FROM (OLD.tenant_id, OLD.period, OLD.starts_at, OLD.ends_at);
BEGIN
    IF OLD.state = 'closed' OR NEW.revision <> OLD.revision THEN
        is_fixed := is_fixed OR OLD.state <> 'closed' OR NEW.state <> 'open'
            OR NEW.revision <> OLD.revision + 1
            OR NOT EXISTS (SELECT FROM invoice i WHERE i.tenant_id = OLD.tenant_id
                AND i.period = OLD.period AND i.status = 'void' AND i.revision = OLD.revision)
            OR EXISTS (SELECT FROM invoice i WHERE i.tenant_id = OLD.tenant_id
                AND i.period = OLD.period AND i.status <> 'void');
    END IF;
    IF is_fixed THEN
        RAISE EXCEPTION 'period % of tenant % is fixed', OLD.period, OLD.tenant_id
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;

-- As before; and what is paid, may be paid, or is credited in part is never void.
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
    IF NEW.status = 'void' AND was <> 'void' AND (
        EXISTS (SELECT FROM payment_attempt a WHERE a.tenant_id = NEW.tenant_id
            AND a.invoice_id = NEW.invoice_id AND a.status <> 'failed')
        OR EXISTS (SELECT FROM credit_note n WHERE n.tenant_id = NEW.tenant_id
            AND n.invoice_id = NEW.invoice_id))
    THEN
        RAISE EXCEPTION 'invoice % has a payment or a credit note', NEW.number
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;

-- As before; but what was billed for a period are the lines of its invoice that is not void and
-- all corrections that are not void, also those of an invoice that is void since.
CREATE OR REPLACE FUNCTION corrections(tenants uuid[], periods text[])
RETURNS TABLE (tenant_id uuid, line_key text, meter text, starts_at timestamptz,
    ends_at timestamptz, quantity numeric, exact numeric, amount_minor bigint, detail jsonb,
    corrects_invoice uuid, corrects_key text)
LANGUAGE sql STABLE AS $$
    WITH billed AS (
        SELECT i.tenant_id, i.period, COALESCE(l.corrects_key, l.line_key) AS line_key, l.meter,
            l.starts_at, l.ends_at, l.quantity, l.exact, l.amount_minor
        FROM unnest(tenants, periods) AS asked (tenant_id, period)
        JOIN invoice i ON i.tenant_id = asked.tenant_id AND i.period = asked.period
        JOIN invoice_line l ON l.tenant_id = i.tenant_id
            AND (l.invoice_id = i.invoice_id AND l.kind <> 'correction'
                OR l.corrects_invoice = i.invoice_id)
        JOIN invoice o ON o.tenant_id = l.tenant_id AND o.invoice_id = l.invoice_id
            AND o.status <> 'void'
    ),
    was AS (
        SELECT b.tenant_id, b.period, b.line_key, max(b.meter) AS meter,
            min(b.starts_at) AS starts_at, max(b.ends_at) AS ends_at,
            sum(b.quantity) AS quantity, sum(b.exact) AS exact, sum(b.amount_minor) AS minor
        FROM billed b GROUP BY b.tenant_id, b.period, b.line_key
    ),
    changed AS (
        SELECT COALESCE(n.tenant_id, w.tenant_id) AS tenant_id,
            COALESCE(n.period, w.period) AS period, COALESCE(n.line_key, w.line_key) AS line_key,
            COALESCE(n.meter, w.meter) AS meter, COALESCE(n.starts_at, w.starts_at) AS starts_at,
            COALESCE(n.ends_at, w.ends_at) AS ends_at,
            COALESCE(n.quantity, 0) - COALESCE(w.quantity, 0) AS quantity,
            COALESCE(n.exact, 0) - COALESCE(w.exact, 0) AS exact,
            COALESCE(n.amount_minor, 0) AS now_minor, COALESCE(w.minor, 0)::bigint AS was_minor
        FROM (SELECT * FROM charge(tenants, periods, 'infinity')) n
        FULL JOIN was w ON w.tenant_id = n.tenant_id AND w.period = n.period
            AND w.line_key = n.line_key
    )
    SELECT c.tenant_id, 'correction/' || i.number || '/' || c.line_key, c.meter, c.starts_at,
        c.ends_at, c.quantity, c.exact, c.now_minor - c.was_minor,
        jsonb_build_object('number', i.number, 'period', c.period, 'wasMinor', c.was_minor,
            'nowMinor', c.now_minor), i.invoice_id, c.line_key
    FROM changed c
    JOIN invoice i ON i.tenant_id = c.tenant_id AND i.period = c.period AND i.status <> 'void'
    WHERE c.now_minor <> c.was_minor
$$;

CREATE INDEX ledger_entry_expired ON ledger_entry (tenant_id)
    WHERE account = 'customer_credit' AND txn_key LIKE 'expired%';
-- What of credits was written off as expired. It is less again when a void invoice gives a credit
-- back to its period: that one may still use it.
CREATE VIEW credit_expired WITH (security_invoker = true) AS
SELECT e.tenant_id, substr(e.txn_key, strpos(e.txn_key, '/') + 1) AS credit_id,
    count(*) AS times, sum(e.amount_minor)::bigint AS expired_minor
FROM ledger_entry e
WHERE e.account = 'customer_credit' AND e.txn_key LIKE 'expired%'
GROUP BY 1, 2;

SELECT grant_writes('botplane_billing', 'INSERT', ARRAY['late_usage']);
SELECT grant_writes('botplane_billing', 'UPDATE', ARRAY['forecast']);
SELECT grant_writes('botplane_billing', 'SELECT', ARRAY['credit_expired']);
