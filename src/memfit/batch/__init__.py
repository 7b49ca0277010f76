"""Many requests in one file: reads them, and keeps their answers through any interruption. Runs no model."""
