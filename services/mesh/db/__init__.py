"""PostgreSQL: connections, transactions, migrations, expiry of old rows."""
