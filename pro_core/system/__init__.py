"""What the machine gives: files that appear whole, finished folders, caches, processes, packages, and models by
name."""
