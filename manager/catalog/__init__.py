"""The database: its tables, connections and transactions, the office's row, backups. Knows no request and no term."""
