-- Invoices with what lowers and raises them, credit notes, and the ledger.

CREATE TABLE coupon_grant (
    tenant_id uuid NOT NULL REFERENCES tenant,
    code text NOT NULL CHECK (code ~ '^[A-Za-z0-9][-A-Za-z0-9_.]{0,62}$'),
    percent numeric(7, 4) CHECK (percent > 0 AND percent <= 100),
    amount_minor minor CHECK (amount_minor > 0),
    target text NOT NULL CHECK (target IN ('invoice', 'subscription', 'commission', 'one_off')
        OR target ~ '^usage(/[a-z_]+)?$'),
    starts_at timestamptz(0) NOT NULL,
    ends_at timestamptz(0),
    uses integer CHECK (uses > 0),
    granted_at timestamptz(0) NOT NULL,
    PRIMARY KEY (tenant_id, code),
    CHECK ((percent IS NULL) <> (amount_minor IS NULL)),
    CHECK (ends_at > starts_at)
);
COMMENT ON COLUMN coupon_grant.uses IS 'Invoices that it may lower; null is no limit.';

-- A coupon can be ended; what it was stays.
CREATE FUNCTION coupon_grant_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF to_jsonb(NEW) - 'ends_at' IS DISTINCT FROM to_jsonb(OLD) - 'ends_at' THEN
        RAISE EXCEPTION 'coupon % of tenant % is granted', OLD.code, OLD.tenant_id
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER coupon_grant_guard BEFORE UPDATE ON coupon_grant
    FOR EACH ROW EXECUTE FUNCTION coupon_grant_guard();

CREATE TABLE tenant_tax (
    tenant_id uuid NOT NULL REFERENCES tenant,
    name text NOT NULL CHECK (name <> ''),
    target text NOT NULL CHECK (target IN ('all', 'subscription', 'usage', 'commitment',
        'commission', 'one_off')),
    starts_at timestamptz(0) NOT NULL,
    ends_at timestamptz(0),
    rate numeric(7, 6) NOT NULL CHECK (rate BETWEEN 0 AND 1),
    reason text,
    PRIMARY KEY (tenant_id, name, target, starts_at),
    CHECK (ends_at > starts_at),
    CHECK (rate > 0 OR reason IS NOT NULL),
    EXCLUDE USING gist (tenant_id WITH =, name WITH =, target WITH =,
        tstzrange(starts_at, ends_at) WITH &&)
);
COMMENT ON TABLE tenant_tax IS 'A change is a new row; the one of a period''s last moment counts.';
COMMENT ON COLUMN tenant_tax.reason IS 'Why nothing is charged, such as reverse charge.';

CREATE FUNCTION tenant_tax_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.ends_at IS NOT NULL
        OR to_jsonb(NEW) - 'ends_at' IS DISTINCT FROM to_jsonb(OLD) - 'ends_at'
    THEN
        RAISE EXCEPTION 'tax % of tenant % from % on is history', OLD.name, OLD.tenant_id,
            OLD.starts_at USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER tenant_tax_guard BEFORE UPDATE ON tenant_tax
    FOR EACH ROW EXECUTE FUNCTION tenant_tax_guard();

CREATE TABLE credit_grant (
    tenant_id uuid NOT NULL REFERENCES tenant,
    credit_id text NOT NULL CHECK (credit_id <> ''),
    kind text NOT NULL CHECK (kind IN ('promotional', 'purchased', 'credit_note')),
    amount_minor minor NOT NULL CHECK (amount_minor > 0),
    expires_at timestamptz(0),
    granted_at timestamptz(0) NOT NULL,
    PRIMARY KEY (tenant_id, credit_id),
    CHECK (expires_at IS NULL OR kind = 'promotional')
);
COMMENT ON TABLE credit_grant IS 'Money in advance, in the currency of the tenant.';
COMMENT ON COLUMN credit_grant.expires_at IS 'It pays for periods that end until then.';

CREATE TABLE one_off (
    tenant_id uuid NOT NULL,
    reference text NOT NULL CHECK (reference ~ '^[A-Za-z0-9][-A-Za-z0-9_.]{0,62}$'),
    period text NOT NULL,
    description text NOT NULL CHECK (description ~ '^[^[:cntrl:]]{1,80}$'),
    amount_minor minor NOT NULL CHECK (amount_minor > 0),
    charged_at timestamptz(0) NOT NULL,
    PRIMARY KEY (tenant_id, reference),
    FOREIGN KEY (tenant_id, period) REFERENCES billing_period
);
COMMENT ON TABLE one_off IS 'One line each, on the invoice of its period, also when that is issued anew.';
COMMENT ON COLUMN one_off.period IS 'The first one that was not billed when it was charged.';
CREATE INDEX one_off_period ON one_off (tenant_id, period);

-- Whoever bills the period locks it, as this does: either the invoice has the charge, or this sees
-- that the period is closed.
CREATE FUNCTION one_off_guard() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM FROM billing_period b WHERE b.tenant_id = NEW.tenant_id AND b.period = NEW.period
        AND b.state <> 'closed' FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'period % of tenant % is billed', NEW.period, NEW.tenant_id
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER one_off_guard BEFORE INSERT ON one_off
    FOR EACH ROW EXECUTE FUNCTION one_off_guard();

CREATE TABLE invoice_counter (
    series text PRIMARY KEY,
    last bigint NOT NULL CHECK (last >= 0)
);

CREATE FUNCTION invoice_counter_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.series <> OLD.series OR NEW.last <= OLD.last THEN
        RAISE EXCEPTION 'invoice numbers only go up' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER invoice_counter_guard BEFORE UPDATE ON invoice_counter
    FOR EACH ROW EXECUTE FUNCTION invoice_counter_guard();

CREATE TABLE invoice (
    tenant_id uuid NOT NULL,
    invoice_id uuid NOT NULL DEFAULT gen_random_uuid(),
    period text NOT NULL,
    status text NOT NULL DEFAULT 'draft'
        CHECK (status IN ('draft', 'finalized', 'paid', 'void', 'uncollectible')),
    number text,
    currency char(3) NOT NULL REFERENCES currency,
    subtotal_minor minor NOT NULL,
    discount_minor minor NOT NULL DEFAULT 0 CHECK (discount_minor >= 0),
    tax_minor minor NOT NULL DEFAULT 0,
    total_minor minor NOT NULL,
    credit_minor minor NOT NULL DEFAULT 0 CHECK (credit_minor >= 0),
    carried_minor minor NOT NULL DEFAULT 0,
    due_minor minor NOT NULL CHECK (due_minor >= 0),
    issued_at timestamptz(0) NOT NULL,
    snapshot jsonb NOT NULL,
    content_hash bytea NOT NULL,
    carried_in_minor minor NOT NULL DEFAULT 0,
    carried_out_minor minor NOT NULL DEFAULT 0 CHECK (carried_out_minor >= 0),
    refunded_minor minor NOT NULL DEFAULT 0 CHECK (refunded_minor >= 0),
    revision integer NOT NULL DEFAULT 0 CHECK (revision >= 0),
    PRIMARY KEY (tenant_id, invoice_id),
    UNIQUE (tenant_id, number),
    FOREIGN KEY (tenant_id, period) REFERENCES billing_period,
    CHECK (total_minor = subtotal_minor - discount_minor + tax_minor),
    CHECK (carried_minor = carried_in_minor - carried_out_minor + refunded_minor),
    CHECK (due_minor = total_minor - credit_minor + carried_minor),
    CHECK (status = 'draft' OR number IS NOT NULL)
);
COMMENT ON COLUMN invoice.snapshot IS 'What the document says besides money: names, zone, dates.';
COMMENT ON COLUMN invoice.content_hash IS 'SHA-256 of the canonical JSON document.';
COMMENT ON COLUMN invoice.revision IS 'That of its period when it was issued.';
CREATE UNIQUE INDEX invoice_once ON invoice (tenant_id, period) WHERE status <> 'void';
CREATE INDEX invoice_unpaid ON invoice (tenant_id, invoice_id)
    WHERE status IN ('finalized', 'uncollectible');
CREATE UNIQUE INDEX invoice_void ON invoice (tenant_id, period, revision) WHERE status = 'void';

CREATE TABLE invoice_line (
    tenant_id uuid NOT NULL,
    invoice_id uuid NOT NULL,
    line_key text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('subscription', 'usage', 'commission', 'commitment',
        'one_off', 'correction')),
    meter text REFERENCES meter,
    starts_at timestamptz(0) NOT NULL,
    ends_at timestamptz(0) NOT NULL,
    quantity quantity NOT NULL,
    exact numeric(38, 18) NOT NULL,
    amount_minor minor NOT NULL,
    detail jsonb NOT NULL,
    discount_minor minor NOT NULL DEFAULT 0 CHECK (discount_minor >= 0),
    corrects_invoice uuid,
    corrects_key text,
    PRIMARY KEY (tenant_id, invoice_id, line_key),
    FOREIGN KEY (tenant_id, invoice_id) REFERENCES invoice,
    CHECK (CASE kind WHEN 'usage' THEN meter IS NOT NULL WHEN 'correction' THEN true
        ELSE meter IS NULL END),
    CHECK (discount_minor <= greatest(amount_minor, 0)),
    CHECK ((kind = 'correction') = (corrects_key IS NOT NULL)
        AND (corrects_key IS NULL) = (corrects_invoice IS NULL))
);
COMMENT ON COLUMN invoice_line.exact IS 'In the major unit; rounded once, half to even, to amount.';
CREATE INDEX invoice_line_corrects ON invoice_line (tenant_id, corrects_invoice)
    WHERE corrects_invoice IS NOT NULL;

CREATE TABLE invoice_discount (
    tenant_id uuid NOT NULL,
    invoice_id uuid NOT NULL,
    code text NOT NULL,
    position smallint NOT NULL,
    target text NOT NULL,
    percent numeric(7, 4),
    amount_minor minor NOT NULL CHECK (amount_minor > 0),
    PRIMARY KEY (tenant_id, invoice_id, code),
    FOREIGN KEY (tenant_id, invoice_id) REFERENCES invoice,
    FOREIGN KEY (tenant_id, code) REFERENCES coupon_grant
);
CREATE INDEX invoice_discount_code ON invoice_discount (tenant_id, code);

CREATE TABLE invoice_tax (
    tenant_id uuid NOT NULL,
    invoice_id uuid NOT NULL,
    position smallint NOT NULL,
    name text NOT NULL,
    rate numeric(7, 6) NOT NULL,
    reason text,
    base_minor minor NOT NULL,
    amount_minor minor NOT NULL,
    PRIMARY KEY (tenant_id, invoice_id, position),
    FOREIGN KEY (tenant_id, invoice_id) REFERENCES invoice,
    CHECK (abs(amount_minor) <= abs(base_minor))
);

CREATE TABLE invoice_credit (
    tenant_id uuid NOT NULL,
    invoice_id uuid NOT NULL,
    credit_id text NOT NULL,
    position smallint NOT NULL,
    amount_minor minor NOT NULL CHECK (amount_minor > 0),
    PRIMARY KEY (tenant_id, invoice_id, credit_id),
    FOREIGN KEY (tenant_id, invoice_id) REFERENCES invoice,
    FOREIGN KEY (tenant_id, credit_id) REFERENCES credit_grant
);
CREATE INDEX invoice_credit_credit ON invoice_credit (tenant_id, credit_id);

CREATE TABLE credit_note (
    tenant_id uuid NOT NULL,
    reference text NOT NULL CHECK (reference <> ''),
    invoice_id uuid NOT NULL,
    number text NOT NULL,
    reason text NOT NULL CHECK (reason <> ''),
    amount_minor minor NOT NULL CHECK (amount_minor > 0),
    tax_minor minor NOT NULL CHECK (tax_minor >= 0 AND tax_minor <= amount_minor),
    settled_by text NOT NULL CHECK (settled_by IN ('credit', 'reduce_due', 'refund')),
    issued_at timestamptz(0) NOT NULL,
    PRIMARY KEY (tenant_id, reference),
    UNIQUE (tenant_id, number),
    FOREIGN KEY (tenant_id, invoice_id) REFERENCES invoice
);
COMMENT ON TABLE credit_note IS 'Takes back part of an issued invoice; amounts include tax.';
COMMENT ON COLUMN credit_note.settled_by IS
    'reduce_due: of an invoice that is not paid; credit: pays for coming invoices; refund: paid back.';
CREATE INDEX credit_note_invoice ON credit_note (tenant_id, invoice_id);

CREATE TABLE ledger_txn (
    tenant_id uuid NOT NULL REFERENCES tenant,
    txn_key text NOT NULL,
    at timestamptz(0) NOT NULL,
    PRIMARY KEY (tenant_id, txn_key)
);
COMMENT ON COLUMN ledger_txn.txn_key IS 'What happened, such as invoice/<id>: it can happen once.';

CREATE TABLE ledger_entry (
    tenant_id uuid NOT NULL,
    txn_key text NOT NULL,
    account text NOT NULL CHECK (account IN ('receivable', 'carried', 'cash', 'customer_credit',
        'tax_payable', 'revenue_subscription', 'revenue_usage', 'revenue_commission',
        'revenue_one_off', 'discount_given', 'credit_given', 'bad_debt', 'processor_fee')),
    currency char(3) NOT NULL REFERENCES currency,
    amount_minor minor NOT NULL CHECK (amount_minor <> 0),
    PRIMARY KEY (tenant_id, txn_key, account, currency),
    FOREIGN KEY (tenant_id, txn_key) REFERENCES ledger_txn
);
COMMENT ON COLUMN ledger_entry.amount_minor IS 'Debit positive, credit negative.';
CREATE INDEX ledger_entry_carried ON ledger_entry (tenant_id) WHERE account = 'carried';
CREATE INDEX ledger_entry_expired ON ledger_entry (tenant_id)
    WHERE account = 'customer_credit' AND txn_key LIKE 'expired%';

-- What credits have left; a void invoice gives its credits back.
CREATE VIEW credit_left WITH (security_invoker = true) AS
SELECT g.tenant_id, g.credit_id, g.kind, g.granted_at, g.expires_at, g.amount_minor,
    g.amount_minor - COALESCE(sum(u.amount_minor) FILTER (WHERE i.status <> 'void'), 0)
        AS left_minor
FROM credit_grant g
LEFT JOIN invoice_credit u ON u.tenant_id = g.tenant_id AND u.credit_id = g.credit_id
LEFT JOIN invoice i ON i.tenant_id = u.tenant_id AND i.invoice_id = u.invoice_id
GROUP BY g.tenant_id, g.credit_id;

-- How often coupons may still be used; null is no limit.
CREATE VIEW coupon_left WITH (security_invoker = true) AS
SELECT g.*, g.uses - (count(*) FILTER (WHERE i.status <> 'void'))::integer AS uses_left
FROM coupon_grant g
LEFT JOIN invoice_discount u ON u.tenant_id = g.tenant_id AND u.code = g.code
LEFT JOIN invoice i ON i.tenant_id = u.tenant_id AND i.invoice_id = u.invoice_id
GROUP BY g.tenant_id, g.code;

-- What of credits was written off as expired. It is less again when a void invoice gives a credit
-- back to its period: that one may still use it.
CREATE VIEW credit_expired WITH (security_invoker = true) AS
SELECT e.tenant_id, substr(e.txn_key, strpos(e.txn_key, '/') + 1) AS credit_id,
    count(*) AS times, sum(e.amount_minor)::bigint AS expired_minor
FROM ledger_entry e
WHERE e.account = 'customer_credit' AND e.txn_key LIKE 'expired%'
GROUP BY 1, 2;

-- An issued invoice changes its status only, and what is paid, may be paid, or is credited in part
-- is never void. Comparing rows costs a tenth of comparing their JSON.
CREATE FUNCTION invoice_guard() RETURNS trigger LANGUAGE plpgsql AS $$
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
CREATE TRIGGER invoice_guard BEFORE UPDATE ON invoice
    FOR EACH ROW EXECUTE FUNCTION invoice_guard();

-- The checks of parts and sums look at statements, not at rows: one that breaks a rule fails as a
-- whole. Every ledger transaction is written, with all its entries, by one statement.
CREATE FUNCTION invoice_line_guard() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM FROM (SELECT DISTINCT a.tenant_id, a.invoice_id FROM added a) AS a
    WHERE NOT EXISTS (SELECT FROM invoice i WHERE i.tenant_id = a.tenant_id
        AND i.invoice_id = a.invoice_id AND i.status = 'draft');
    IF FOUND THEN
        RAISE EXCEPTION 'lines are added while the invoice is a draft'
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER invoice_line_guard AFTER INSERT ON invoice_line
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION invoice_line_guard();
CREATE TRIGGER invoice_line_guard AFTER INSERT ON invoice_discount
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION invoice_line_guard();
CREATE TRIGGER invoice_line_guard AFTER INSERT ON invoice_tax
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION invoice_line_guard();
CREATE TRIGGER invoice_line_guard AFTER INSERT ON invoice_credit
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION invoice_line_guard();

-- All parts of an invoice add up to what it says.
CREATE FUNCTION invoice_lines_sum() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    wrong record;
BEGIN
    SELECT i.number, s.found_sums, s.said INTO wrong
    FROM written i
    CROSS JOIN LATERAL (SELECT COALESCE(sum(l.amount_minor), 0) AS amount,
            COALESCE(sum(l.discount_minor), 0) AS discount
        FROM invoice_line l WHERE l.tenant_id = i.tenant_id AND l.invoice_id = i.invoice_id) AS l
    CROSS JOIN LATERAL (SELECT ARRAY[l.amount, l.discount,
        (SELECT COALESCE(sum(d.amount_minor), 0) FROM invoice_discount d
            WHERE d.tenant_id = i.tenant_id AND d.invoice_id = i.invoice_id),
        (SELECT COALESCE(sum(t.amount_minor), 0) FROM invoice_tax t
            WHERE t.tenant_id = i.tenant_id AND t.invoice_id = i.invoice_id),
        (SELECT COALESCE(sum(c.amount_minor), 0) FROM invoice_credit c
            WHERE c.tenant_id = i.tenant_id AND c.invoice_id = i.invoice_id)] AS found_sums,
        ARRAY[i.subtotal_minor, i.discount_minor, i.discount_minor, i.tax_minor,
            i.credit_minor]::numeric[] AS said) AS s
    WHERE i.status = 'finalized' AND s.found_sums IS DISTINCT FROM s.said
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'parts of invoice % sum to %, not to %', wrong.number, wrong.found_sums,
            wrong.said USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER invoice_lines_sum_inserted AFTER INSERT ON invoice
    REFERENCING NEW TABLE AS written FOR EACH STATEMENT EXECUTE FUNCTION invoice_lines_sum();
CREATE TRIGGER invoice_lines_sum_updated AFTER UPDATE ON invoice
    REFERENCING NEW TABLE AS written FOR EACH STATEMENT EXECUTE FUNCTION invoice_lines_sum();

CREATE FUNCTION ledger_balanced() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    odd text;
BEGIN
    SELECT e.txn_key INTO odd
    FROM (SELECT DISTINCT a.tenant_id, a.txn_key FROM added a) AS a
    JOIN ledger_entry e ON e.tenant_id = a.tenant_id AND e.txn_key = a.txn_key
    GROUP BY e.tenant_id, e.txn_key, e.currency HAVING sum(e.amount_minor) <> 0
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'ledger transaction % does not balance', odd
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER ledger_balanced AFTER INSERT ON ledger_entry
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION ledger_balanced();

-- Two invoices that would use the same credit or coupon wait for each other on its grant.
CREATE FUNCTION invoice_credit_guard() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM FROM credit_grant g WHERE g.tenant_id = NEW.tenant_id AND g.credit_id = NEW.credit_id
        FOR UPDATE;
    PERFORM FROM credit_left l WHERE l.tenant_id = NEW.tenant_id AND l.credit_id = NEW.credit_id
        AND l.left_minor < 0;
    IF FOUND THEN
        RAISE EXCEPTION 'credit % has less than % left', NEW.credit_id, NEW.amount_minor
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER invoice_credit_guard AFTER INSERT ON invoice_credit
    FOR EACH ROW EXECUTE FUNCTION invoice_credit_guard();

CREATE FUNCTION invoice_discount_guard() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM FROM coupon_grant g WHERE g.tenant_id = NEW.tenant_id AND g.code = NEW.code FOR UPDATE;
    PERFORM FROM coupon_left l WHERE l.tenant_id = NEW.tenant_id AND l.code = NEW.code
        AND l.uses_left < 0;
    IF FOUND THEN
        RAISE EXCEPTION 'coupon % is used up', NEW.code USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER invoice_discount_guard AFTER INSERT ON invoice_discount
    FOR EACH ROW EXECUTE FUNCTION invoice_discount_guard();

-- A grant is in the ledger from its first moment: what the tenant may use, and who paid for it.
CREATE FUNCTION credit_grant_posted() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    entered text := 'grant/' || NEW.credit_id;
BEGIN
    IF NEW.kind = 'credit_note' THEN
        RETURN NULL; -- the invoice or credit note that it comes from is its transaction
    END IF;
    INSERT INTO ledger_txn (tenant_id, txn_key, at) VALUES (NEW.tenant_id, entered, NEW.granted_at);
    INSERT INTO ledger_entry (tenant_id, txn_key, account, currency, amount_minor)
    SELECT NEW.tenant_id, entered, e.account, t.currency, e.amount_minor
    FROM tenant t CROSS JOIN (VALUES
        (CASE NEW.kind WHEN 'purchased' THEN 'cash' ELSE 'credit_given' END, NEW.amount_minor),
        ('customer_credit', -NEW.amount_minor)) AS e (account, amount_minor)
    WHERE t.tenant_id = NEW.tenant_id;
    RETURN NULL;
END $$;
CREATE TRIGGER credit_grant_posted AFTER INSERT ON credit_grant
    FOR EACH ROW EXECUTE FUNCTION credit_grant_posted();

SELECT freeze_rows(ARRAY['credit_grant', 'one_off', 'invoice_line', 'invoice_discount',
    'invoice_tax', 'invoice_credit', 'credit_note', 'ledger_txn', 'ledger_entry']);
SELECT keep_rows(ARRAY['coupon_grant', 'tenant_tax', 'invoice_counter', 'invoice']);
