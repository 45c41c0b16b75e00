"""What people have, listed: folders, tars, parquet, lists → named images, each a range of bytes in a file."""
