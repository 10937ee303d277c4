"""Requests that raftkv does not serve: authentication, answered as etcd does while it is off, and others."""

from __future__ import annotations

from collections.abc import Mapping

from raftkv.http.etcd.errors import Code, GatewayError, invalid
from raftkv.http.etcd.fields import Fields
from raftkv.http.etcd.headers import Document, Headers, Unary
from raftkv.service.api import StoreService

_NO_USER = "etcdserver: user name not found"
_NO_ROLE = "etcdserver: role name not found"

_REFUSED = {
    "auth/enable": "etcdserver: root user does not exist",
    "auth/authenticate": "etcdserver: authentication is not enabled",
    "auth/user/get": _NO_USER,
    "auth/user/delete": _NO_USER,
    "auth/user/changepw": _NO_USER,
    "auth/user/grant": _NO_USER,
    "auth/user/revoke": _NO_USER,
    "auth/role/get": _NO_ROLE,
    "auth/role/delete": _NO_ROLE,
    "auth/role/revoke": _NO_ROLE,
}
"""There are no users and no roles."""

_EMPTY = ("auth/disable", "auth/user/list", "auth/role/list")

_UNIMPLEMENTED = ("maintenance/downgrade",)


class AbsentRequests:
    """Handlers of requests that are not served.

    Args:
        store: For its revision.
        headers: Writes headers.
    """

    def __init__(self, store: StoreService, headers: Headers) -> None:
        self._store = store
        self._headers = headers

    def handlers(self) -> Mapping[str, Unary]:
        """Return the handler of each path."""
        return {
            **{path: _refusal(Code.FAILED_PRECONDITION, message) for path, message in _REFUSED.items()},
            **dict.fromkeys(_EMPTY, self._nothing),
            "auth/status": self._status,
            "auth/role/grant": self._grant,
            "auth/user/add": self._add_user,
            "auth/role/add": self._add_role,
            **{path: _refusal(Code.UNIMPLEMENTED, f"raftkv does not serve {path} yet") for path in _UNIMPLEMENTED},
        }

    async def _nothing(self, _fields: Fields) -> Document:
        return self._headers.answer({}, self._store.revision)

    async def _grant(self, fields: Fields) -> Document:
        if fields.message("perm") is None:
            raise invalid("etcdserver: permission not given")
        raise GatewayError(Code.FAILED_PRECONDITION, _NO_ROLE)

    async def _add_user(self, fields: Fields) -> Document:
        raise _cannot_add("user", fields)

    async def _add_role(self, fields: Fields) -> Document:
        raise _cannot_add("role", fields)

    async def _status(self, _fields: Fields) -> Document:
        return self._headers.answer({"authRevision": "1"}, self._store.revision)


def _cannot_add(kind: str, fields: Fields) -> GatewayError:
    if not fields.text("name"):
        return invalid(f"etcdserver: {kind} name is empty")
    return GatewayError(Code.UNIMPLEMENTED, f"raftkv does not serve auth/{kind}/add yet")


def _refusal(code: Code, message: str) -> Unary:
    async def refuse(_fields: Fields) -> Document:
        raise GatewayError(code, message)

    return refuse
