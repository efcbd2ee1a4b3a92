"""The `peat` command: one file per command."""
