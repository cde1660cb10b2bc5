"""WebDataset: `tar` reads archives, `source` makes records of their members."""
