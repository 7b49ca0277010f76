"""What memfit's processes hold and do, from outside: by /proc, drivers, and what servers tell over HTTP."""
