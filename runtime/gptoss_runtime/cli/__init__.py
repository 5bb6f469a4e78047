"""The command line: one module per command; no command imports a model library before it runs."""
