"""How the bundled models are made, one file each."""
