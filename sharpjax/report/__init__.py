"""What runs show: one description of each, for the terminal, the CSV files and the page."""
