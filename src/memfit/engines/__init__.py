"""What executes a plan. The Engine protocol and a fake beside it; each engine has a folder."""
