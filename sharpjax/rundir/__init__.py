"""A run's directory: its files, what made it, how far it is."""
