"""What the bytes mean: schema, row index, manifest, decoding; no I/O."""
