"""Nodes that speak TLS with everybody."""

from __future__ import annotations

import ssl
import urllib.request

from tests.process.cluster import NodeProcess
from tests.tls_files import TestAuthority


class TlsNode(NodeProcess):
    """A node that is asked over TLS."""

    context: ssl.SSLContext

    def open(self, request, timeout):
        return urllib.request.build_opener(urllib.request.HTTPSHandler(context=self.context)).open(
            request, timeout=timeout
        )


def encrypted(
    node: NodeProcess, authority: TestAuthority, *flags: str, clients: TestAuthority | None = None
) -> TlsNode:
    """Make a node speak TLS.

    Args:
        node: The node, which does not run yet.
        authority: What certifies it, and the clients too unless another does.
        flags: Further flags.
        clients: What certifies the clients.
    """
    cert, key = authority.certify(node.name, "127.0.0.1", "localhost")
    node.__class__ = TlsNode
    assert isinstance(node, TlsNode)
    node.url = node.url.replace("http://", "https://")
    node.context = ssl.create_default_context(cafile=authority.certificate)
    node.context.load_cert_chain(*(clients or authority).certify("client", "client"))
    node.command += [f"--tls-cert={cert}", f"--tls-key={key}", f"--tls-ca={authority.certificate}", *flags]
    return node
