"""``smsgw bench``: what this machine does, beside a baseline measured in the same run."""
