"""The `surogate` command: one file a verb, imported by nobody else."""
