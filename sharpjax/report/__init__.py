"""What a finished run shows: tables on the terminal, CSV files, pictures, a page."""
