-- Coupons, taxes and credits of tenants, and the chain of who granted what.

CREATE TABLE audit_log (
    chain text NOT NULL,
    seq bigint NOT NULL CHECK (seq > 0),
    at timestamptz NOT NULL,
    actor text NOT NULL CHECK (actor <> ''),
    action text NOT NULL,
    object text NOT NULL,
    payload jsonb NOT NULL,
    hash bytea NOT NULL,
    PRIMARY KEY (chain, seq)
);
COMMENT ON TABLE audit_log IS 'Chains `tenant/<id>` and `system`; each entry seals those before.';
COMMENT ON COLUMN audit_log.hash IS 'audit_hash() over the hash of the entry before.';

CREATE FUNCTION audit_hash(previous bytea, entry audit_log) RETURNS bytea
LANGUAGE sql STABLE AS $$
    SELECT sha256(COALESCE(previous, sha256(convert_to(entry.chain, 'UTF8'))) || convert_to(
        jsonb_build_array(entry.chain, entry.seq, extract(epoch FROM entry.at)::text, entry.actor,
            entry.action, entry.object, entry.payload)::text, 'UTF8'))
$$;

-- Writers of one chain wait for each other on its last entry; the first on an advisory lock.
CREATE FUNCTION audit_append(p_chain text, p_actor text, p_action text, p_object text,
    p_payload jsonb, p_at timestamptz) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    entry audit_log;
    previous bytea;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(p_chain, 1));
    SELECT l.seq, l.hash INTO entry.seq, previous FROM audit_log l
    WHERE l.chain = p_chain ORDER BY l.seq DESC LIMIT 1;
    entry := (p_chain, COALESCE(entry.seq, 0) + 1, p_at, p_actor, p_action, p_object, p_payload,
        NULL);
    entry.hash := audit_hash(previous, entry);
    INSERT INTO audit_log SELECT entry.*;
END $$;

CREATE TABLE coupon_grant (
    tenant_id uuid NOT NULL REFERENCES tenant,
    code text NOT NULL CHECK (code ~ '^[A-Za-z0-9][-A-Za-z0-9_.]{0,62}$'),
    percent numeric(7, 4) CHECK (percent > 0 AND percent <= 100),
    amount_minor minor CHECK (amount_minor > 0),
    target text NOT NULL CHECK (target IN ('invoice', 'subscription', 'commission')
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
    target text NOT NULL
        CHECK (target IN ('all', 'subscription', 'usage', 'commitment', 'commission')),
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

ALTER TABLE invoice_line ADD COLUMN discount_minor minor NOT NULL DEFAULT 0
    CHECK (discount_minor >= 0);
ALTER TABLE invoice_line ADD COLUMN corrects_invoice uuid;
ALTER TABLE invoice_line ADD COLUMN corrects_key text;
ALTER TABLE invoice_line ADD CONSTRAINT invoice_line_discount_check
    CHECK (discount_minor <= greatest(amount_minor, 0));
ALTER TABLE invoice_line ADD CONSTRAINT invoice_line_corrects_check
    CHECK ((kind = 'correction') = (corrects_key IS NOT NULL)
        AND (corrects_key IS NULL) = (corrects_invoice IS NULL));
ALTER TABLE invoice ADD COLUMN carried_in_minor minor NOT NULL DEFAULT 0;
ALTER TABLE invoice ADD COLUMN carried_out_minor minor NOT NULL DEFAULT 0
    CHECK (carried_out_minor >= 0);
ALTER TABLE invoice ADD COLUMN refunded_minor minor NOT NULL DEFAULT 0 CHECK (refunded_minor >= 0);
ALTER TABLE invoice ADD CONSTRAINT invoice_carried_check
    CHECK (carried_minor = carried_in_minor - carried_out_minor + refunded_minor);

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

-- Two invoices that would use the same credit or coupon wait for each other on its grant.
CREATE FUNCTION invoice_credit_guard() RETURNS trigger LANGUAGE plpgsql AS $$
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

CREATE FUNCTION invoice_discount_guard() RETURNS trigger LANGUAGE plpgsql AS $$
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

-- All parts of an invoice add up to what it says.
CREATE OR REPLACE FUNCTION invoice_lines_sum() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    said numeric[] := ARRAY[NEW.subtotal_minor, NEW.discount_minor, NEW.discount_minor,
        NEW.tax_minor, NEW.credit_minor];
    found_sums numeric[];
BEGIN
    SELECT ARRAY[l.amount, l.discount,
        (SELECT COALESCE(sum(d.amount_minor), 0) FROM invoice_discount d
            WHERE d.tenant_id = NEW.tenant_id AND d.invoice_id = NEW.invoice_id),
        (SELECT COALESCE(sum(t.amount_minor), 0) FROM invoice_tax t
            WHERE t.tenant_id = NEW.tenant_id AND t.invoice_id = NEW.invoice_id),
        (SELECT COALESCE(sum(c.amount_minor), 0) FROM invoice_credit c
            WHERE c.tenant_id = NEW.tenant_id AND c.invoice_id = NEW.invoice_id)]
    INTO found_sums
    FROM (SELECT COALESCE(sum(l.amount_minor), 0) AS amount,
            COALESCE(sum(l.discount_minor), 0) AS discount
        FROM invoice_line l
        WHERE l.tenant_id = NEW.tenant_id AND l.invoice_id = NEW.invoice_id) AS l;
    IF found_sums IS DISTINCT FROM said THEN
        RAISE EXCEPTION 'parts of invoice % sum to %, not to %', NEW.number, found_sums, said
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END $$;

CREATE INDEX ledger_entry_carried ON ledger_entry (tenant_id) WHERE account = 'carried';

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

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['invoice_discount', 'invoice_tax', 'invoice_credit'] LOOP
        EXECUTE format('CREATE TRIGGER invoice_line_guard BEFORE INSERT ON %I
            FOR EACH ROW EXECUTE FUNCTION invoice_line_guard()', name);
    END LOOP;
    FOREACH name IN ARRAY ARRAY['audit_log', 'credit_grant', 'invoice_discount', 'invoice_tax',
        'invoice_credit'] LOOP
        EXECUTE format('CREATE TRIGGER no_update BEFORE UPDATE ON %I
            FOR EACH ROW EXECUTE FUNCTION forbid_change()', name);
    END LOOP;
    FOREACH name IN ARRAY ARRAY['audit_log', 'coupon_grant', 'tenant_tax', 'credit_grant',
        'invoice_discount', 'invoice_tax', 'invoice_credit'] LOOP
        EXECUTE format('CREATE TRIGGER no_delete BEFORE DELETE ON %I
            FOR EACH ROW EXECUTE FUNCTION forbid_change()', name);
        EXECUTE format('CREATE TRIGGER no_truncate BEFORE TRUNCATE ON %I
            FOR EACH STATEMENT EXECUTE FUNCTION forbid_change()', name);
    END LOOP;
END $$;
