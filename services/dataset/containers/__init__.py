"""From the bytes of a file to raw rows: compression, JSON lines, JSON arrays, CSV, Parquet. All of it streams."""
