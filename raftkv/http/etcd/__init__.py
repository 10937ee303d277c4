"""etcd's v3 JSON gateway: requests and answers exactly as etcd's own, so that its clients work unchanged.

The contract is that of grpc-gateway over etcd's ``rpc.proto``: names in snake_case or camelCase, 64-bit integers as
strings or numbers, bytes in base64, whatever is zero left out.
"""

from raftkv.http.etcd.gateway import Gateway

__all__ = ["Gateway"]
