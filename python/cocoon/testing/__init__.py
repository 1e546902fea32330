"""What tests, benchmarks and notebooks need beside the engine. Nothing here runs VMs."""
