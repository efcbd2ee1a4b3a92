"""What documents mean: heartbeats, holdings, commands, receipts; who is alive, who holds what. Pure."""
