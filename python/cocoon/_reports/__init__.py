"""What people and other programs see of a ledger: HTML, pictures, files. The core calls these by name.

Its own halves of the same methods begin with an underscore (bindings/ledger.cpp, bindings/table.cpp).
"""

from cocoon._reports.export import export
from cocoon._reports.html import audit_html, gc_html, ledger_html, reconcile_html, table_html
from cocoon._reports.timeline import timeline

__all__ = ["audit_html", "export", "gc_html", "ledger_html", "reconcile_html", "table_html", "timeline"]
