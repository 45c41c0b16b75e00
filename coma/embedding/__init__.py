"""Features of any images from any backbone: tables of vectors and patch maps, and what lies near what."""
