"""Services of the machine: atomic files, finished folders, caches, processes, packages, and models by name."""
