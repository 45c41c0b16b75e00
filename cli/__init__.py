"""The `coma` command: one file a command, no logic, and no heavy import before it is needed."""
