"""Pages of the terminal, one module a command: lines that fit a width, with or without colours."""
