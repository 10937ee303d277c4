"""The replicated store: knows keys and revisions; nothing of Raft or HTTP."""
