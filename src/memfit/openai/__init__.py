"""Requests and responses of OpenAI's public APIs as values: read strictly, written exactly."""
