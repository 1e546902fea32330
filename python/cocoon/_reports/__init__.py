"""What people and other programs see of a ledger: HTML, pictures, files. The core calls these by name."""

from cocoon._reports.export import export
from cocoon._reports.html import audit_html, ledger_html, reconcile_html, table_html
from cocoon._reports.timeline import timeline

__all__ = ["audit_html", "export", "ledger_html", "reconcile_html", "table_html", "timeline"]
