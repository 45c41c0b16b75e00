"""Single images: identify the format, check, measure and re-encode."""
