"""From MODEL to its files: names, the local cache, headers read over the network, downloads, deletion."""
