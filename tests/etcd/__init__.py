"""etcd's JSON gateway: against etcd itself, and with clients that others wrote."""
