"""The command line, its help, and how it starts."""
