"""Check the file against its target and pack it for the person who flashes it."""
