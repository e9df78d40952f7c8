"""Our rules of primitives beside Shardy's: small functions, both readings, and what differs."""
