-- callers --
SELECT k.secret_hash, k.tenant_id, k.bot_id FROM ingest_key k
WHERE k.revoked_at IS NULL AND k.bot_id IS NOT NULL AND 'rpc:call' = ANY(k.scopes)
