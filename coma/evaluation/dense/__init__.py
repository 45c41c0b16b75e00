"""Dense evaluation: a class for every pixel, from frozen maps of patches."""
