"""The commands, a file each; `sharpjax.cli` joins them."""
