"""Large images as tiles: the grid of an image, windows read from its file, and the bytes of each tile."""
