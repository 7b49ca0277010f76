"""Helper processes: a private channel to each, its errors rebuilt in one place, one obituary."""
