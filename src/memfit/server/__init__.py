"""The HTTP server: every API's paths over one loaded model, its admission and its safety."""
