"""Parquet files with images inside, read in a process whose memory is bounded."""
