"""What executes a plan. The Session protocol with a fake beside it; each engine has a folder."""
