"""One experiment a file: `get_config(arg)` with values only, no inheritance."""
