"""Collections of JSON documents that merge: the replica, its persistence, queries and change feed."""
