"""What tables of images have in common: columns of labels and splits, paths of files."""
