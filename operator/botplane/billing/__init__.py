"""Price books, invoices, the ledger and payments. Rating is SQL: store/migrations/008 to 010."""
