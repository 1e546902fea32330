"""`cocoon vm`: the group. Making and changing VMs is in vm_verbs.py, what snapshots are for in
vm_snapshots.py, looking at them in vm_show.py."""

from cocoon.cli import app as tree

app = tree.new_group("Create, run and look at VMs.")

# Importing them registers their commands with `app`, in the order in which the help shows them.
from cocoon.cli import vm_verbs, vm_snapshots, vm_show  # noqa: E402, F401, I001
