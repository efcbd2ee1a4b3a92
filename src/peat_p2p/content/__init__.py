"""Packages as content: indexes, manifests, chunks, the store, publishing and materializing."""
