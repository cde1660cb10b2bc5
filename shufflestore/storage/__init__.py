"""Where the bytes are: names, reads and durable commits; no Arrow, no records."""
