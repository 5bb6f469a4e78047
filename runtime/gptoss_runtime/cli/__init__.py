"""The command line: one file a command, none of which imports a model before it runs."""
