"""``/livez`` and ``/readyz``, with the paths and parameters that Kubernetes gives its own."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web

from raftkv.http.answers import json_response, text_response
from raftkv.http.body import refuse_body
from raftkv.http.problems import NO_SUCH_RESOURCE, ProblemError
from raftkv.http.routing import Call
from raftkv.http.target import Query, percent_decode
from raftkv.service.api import ClusterService, HealthCheck


class HealthApi:
    """Handlers of the health endpoints: 200 when every check that counts passes, else 503.

    Args:
        cluster: The node's cluster service.
    """

    def __init__(self, cluster: ClusterService) -> None:
        self._cluster = cluster

    async def live(self, call: Call) -> web.Response:
        """``GET /livez`` and ``GET /livez/{check}``."""
        return _answer(call, "livez", self._cluster.live())

    async def ready(self, call: Call) -> web.Response:
        """``GET /readyz`` and ``GET /readyz/{check}``."""
        return _answer(call, "readyz", await self._cluster.ready())


def _answer(call: Call, endpoint: str, checks: Sequence[HealthCheck]) -> web.Response:
    refuse_body(call.request)
    query = Query(call.query, ("verbose", "exclude"), repeatable=("exclude",))
    verbose = query.choice("verbose", ("", "true", "1", "false", "0"), "false") in ("", "true", "1")
    excluded = [name.decode("utf-8", "backslashreplace") for name in query.all("exclude")]
    if call.tail:
        checks = _only(checks, endpoint, percent_decode(call.tail).decode("utf-8", "backslashreplace"))
    # As in Kubernetes, a name that matches nothing is told and not refused: a probe that outlives a check
    # must not make a good node look bad.
    unmatched = [name for name in excluded if name not in {check.name for check in checks}]
    counted = [check for check in checks if check.name not in excluded]
    healthy = all(check.healthy for check in counted)
    status = 200 if healthy else 503
    if verbose:
        return text_response(_render_text(endpoint, checks, excluded, unmatched, healthy=healthy), status=status)
    document = {
        "healthy": healthy,
        "checks": [{"name": check.name, "healthy": check.healthy, "detail": check.detail} for check in counted],
        "excluded": [check.name for check in checks if check.name in excluded],
        "unmatched": unmatched,
    }
    return json_response(document, status=status)


def _only(checks: Sequence[HealthCheck], endpoint: str, name: str) -> list[HealthCheck]:
    chosen = [check for check in checks if check.name == name]
    if not chosen:
        known = ", ".join(check.name for check in checks)
        raise ProblemError(NO_SUCH_RESOURCE, f"/{endpoint} has no check named {name!r}; it has: {known}")
    return chosen


def _render_text(
    endpoint: str,
    checks: Sequence[HealthCheck],
    excluded: Sequence[str],
    unmatched: Sequence[str],
    *,
    healthy: bool,
) -> str:
    lines = []
    for check in checks:
        if check.name in excluded:
            lines.append(f"[+]{check.name} excluded: ok")
        elif check.healthy:
            lines.append(f"[+]{check.name} ok")
        else:
            lines.append(f"[-]{check.name} failed: {check.detail}")
    lines.extend(f"warn: no check is named {name!r}, so it cannot be excluded" for name in unmatched)
    lines.append(f"{endpoint} check {'passed' if healthy else 'failed'}")
    return "\n".join(lines) + "\n"
