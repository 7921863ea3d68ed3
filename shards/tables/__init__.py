"""Read a user's table of ids and genres: a CSV, JSON, JSONL or Parquet file, or a folder."""
