"""Which path is answered by which function, and who may ask."""

import re
from collections.abc import Callable
from urllib.parse import unquote

from tests.hub_server import content, repositories
from tests.hub_server.messages import Answer, Problem, Request

Access = Callable[[Request], None]


def anyone(r: Request) -> None:
    """Those whose token is wrong never get this far."""


def user(r: Request) -> None:
    if r.user is None:
        raise Problem(401, "Invalid username or password.", "RepoNotFound" if r.found else "")


def writer(r: Request) -> None:
    user(r)
    if r.role != "write":
        raise Problem(403, "You need a token with the write role for this")


def reader(r: Request) -> None:
    """Whoever may know that the repository exists, which the words of the path name."""
    repo = r.store.repos.get(f"{r.words['type'] or 'models'}/{r.words['id']}")
    if not repo or (repo.private and repo.owner != r.user):
        # Without a token, the Hub answers 401 for whatever it doesn't show; over http, clients need the code too.
        raise Problem(404 if r.user else 401, "Repository not found", "RepoNotFound")
    r.found = repo


def contributor(r: Request) -> None:
    reader(r)
    writer(r)


def owner(r: Request) -> None:
    contributor(r)
    if r.user != r.repo.owner:
        raise Problem(403, "You don't have write access to this repository")


API = "/api/(?P<type>models|datasets|spaces)"
REPO = f"{API}/(?P<id>[^/]+/[^/]+)"
FILES = "/(?:(?P<type>datasets|spaces)/)?(?P<id>[^/]+/[^/]+?)"
LFS = FILES + r"\.git/info/lfs"
OID = "/lfs/(?P<oid>[0-9a-f]{64})"

ROUTES: list[tuple[str, str, Access, Callable[[Request], Answer]]] = [
    ("GET", "/api/whoami-v2", user, repositories.whoami),
    ("POST", "/api/validate-yaml", anyone, repositories.validate_yaml),
    ("POST", "/api/repos/create", writer, repositories.create),
    ("DELETE", "/api/repos/delete", writer, repositories.delete),
    ("GET", API, anyone, repositories.listing),
    ("GET", REPO, reader, repositories.info),
    ("GET", f"{REPO}/revision/(?P<revision>[^/]+)", reader, repositories.info),
    ("GET", f"{REPO}/tree/(?P<revision>[^/]+)(?P<path>/.*)?", reader, repositories.tree),
    ("POST", f"{REPO}/paths-info/(?P<revision>[^/]+)", reader, repositories.paths_info),
    ("GET", f"{REPO}/refs", reader, repositories.refs),
    ("GET", f"{REPO}/commits/(?P<revision>[^/]+)", reader, repositories.commits),
    ("POST", f"{REPO}/branch/(?P<name>[^/]+)", owner, repositories.new_branch),
    ("POST", f"{REPO}/tag/(?P<name>[^/]+)", owner, repositories.new_tag),
    ("DELETE", f"{REPO}/(?P<kind>branch|tag)/(?P<name>[^/]+)", owner, repositories.delete_ref),
    ("PUT", f"{REPO}/settings", owner, repositories.change_settings),
    ("POST", f"{REPO}/preupload/(?P<revision>[^/]+)", contributor, repositories.preupload),
    ("POST", f"{REPO}/commit/(?P<revision>[^/]+)", contributor, repositories.commit),
    ("POST", f"{LFS}/objects/batch", contributor, content.batch),
    ("POST", f"{LFS}/verify", contributor, content.verify),
    ("PUT", OID, anyone, content.upload),
    ("PUT", f"{OID}/(?P<part>part[0-9]+)", anyone, content.upload_part),
    ("POST", f"{OID}/complete", anyone, content.complete),
    ("GET", f"{OID}/[^/]+", anyone, content.download),
    ("GET", f"{FILES}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", reader, content.resolve),
]


def dispatch(r: Request) -> Answer:
    """Check the token, find the route, check that the user may take it, take it, and keep what it changed."""
    method = "GET" if r.method == "HEAD" else r.method
    kind, _, token = r.headers.get("Authorization", "").partition(" ")
    with r.store.lock:
        if kind == "Bearer":
            r.user, r.role = r.store.holder(token)
        for verb, pattern, may, handler in ROUTES:
            if verb == method and (match := re.fullmatch(pattern, r.path)):
                r.words = {name: unquote(value) if value else "" for name, value in match.groupdict().items()}
                r.words = {n: w for n, w in r.words.items() if w or n == "type"}
                may(r)
                answer = handler(r)
                if method != "GET":
                    r.store.save()
                return answer
    raise Problem(404, f"The local Hub has no {r.method} {r.path}")
