"""The HTTP front-end: requests and answers only; what they mean is decided by ``raftkv.service``."""

from raftkv.http.clients import ConnectionLimits, connections_within
from raftkv.http.frontend import FrontEnd, FrontEndSettings

__all__ = ["ConnectionLimits", "FrontEnd", "FrontEndSettings", "connections_within"]
