"""Who gets in: tokens, tickets, hosts, origins, the number of open requests."""
