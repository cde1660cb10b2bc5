"""Single steps of a record's trip, each beside the plainest code that does the same."""
