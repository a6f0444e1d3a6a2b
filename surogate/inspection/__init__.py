"""What `surogate inspect` measures in the data of a run, what it calls a problem, and how it is shown."""
