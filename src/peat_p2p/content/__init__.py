"""Packages as content: digests, chunking, manifests, the chunk store."""
