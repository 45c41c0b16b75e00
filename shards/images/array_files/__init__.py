"""Files of arrays, a module for each format: facts of the header, and windows of the pixels."""
