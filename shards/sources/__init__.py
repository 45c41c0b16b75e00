"""Sources of images: detection of their layout and listing of their images, each a range of bytes in a file."""
