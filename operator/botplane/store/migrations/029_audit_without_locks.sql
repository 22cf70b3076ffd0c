-- As before, for thousands of chains in one transaction, which would not fit into the table of locks:
-- the key of an entry is what writers of one chain wait for. Who finds the place taken takes the next.
CREATE OR REPLACE FUNCTION audit_append(p_chain text, p_actor text, p_action text, p_object text,
    p_payload jsonb, p_at timestamptz) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    entry audit_log;
    previous bytea;
BEGIN
    LOOP
        SELECT l.seq, l.hash INTO entry.seq, previous FROM audit_log l
        WHERE l.chain = p_chain ORDER BY l.seq DESC LIMIT 1;
        entry := (p_chain, COALESCE(entry.seq, 0) + 1, p_at, p_actor, p_action, p_object,
            p_payload, NULL);
        entry.hash := audit_hash(previous, entry);
        INSERT INTO audit_log SELECT entry.* ON CONFLICT DO NOTHING;
        EXIT WHEN FOUND;
    END LOOP;
END $$;
-- CREATE OR REPLACE forgets the owner's rights of 009.
ALTER FUNCTION audit_append(text, text, text, text, jsonb, timestamptz)
    SECURITY DEFINER SET search_path FROM CURRENT;
