"""A run as one self-contained HTML page: ``sharpjax report``.

``runs`` reads run directories, a file for each kind of run says what is shown of it, ``blocks`` are
what sections are made of, ``assemble`` joins them by one template.
"""

from sharpjax.page.assemble import write_page

__all__ = ["write_page"]
