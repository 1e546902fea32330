"""Where the programs lie that are installed with the package."""

from pathlib import Path

SHIM = Path(__file__).with_name("cocoon-shim")
SIMVMM = Path(__file__).with_name("cocoon-simvmm")
