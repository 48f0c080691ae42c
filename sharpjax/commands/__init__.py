"""The commands, a file each; :mod:`sharpjax.cli` joins them."""
