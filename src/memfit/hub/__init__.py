"""Models on a network: what a repository holds, their headers read in place, and downloading them."""
