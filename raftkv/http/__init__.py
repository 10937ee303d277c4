"""The HTTP front-end: requests and answers only; what they mean is decided by ``raftkv.service``."""

from raftkv.http.frontend import FrontEnd, FrontEndSettings

__all__ = ["FrontEnd", "FrontEndSettings"]
