"""Where the programs lie that are installed with the package."""

from pathlib import Path

SHIM = Path(__file__).with_name("cocoon-shim")
SIMVMM = Path(__file__).with_name("cocoon-simvmm")
# Of x86-64 alone.
TINY_GUEST = Path(__file__).with_name("cocoon-guest.elf")
