"""What every benchmark shares: data that proves itself, interleaved rounds, results with their circumstances."""
