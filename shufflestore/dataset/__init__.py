"""Manifest and store joined: records by number, in batches, with look-ahead."""
