"""What this machine is and can do, from package metadata and NVML, without torch."""
