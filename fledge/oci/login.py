"""Logs in to registries: anonymous, Basic or Bearer tokens."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

import msgspec

from fledge.errors import CorruptError, FledgeError, NetworkError
from fledge.net.exchange import HttpStatusError, printable_url
from fledge.net.json_document import JsonObject
from fledge.oci import credentials
from fledge.oci.challenges import Challenge, parse_challenges
from fledge.oci.manifest import INDEX_TYPES, MANIFEST_TYPES
from fledge.oci.reference import DOCKER_HUB, Name
from fledge.session import Session
from fledge.tree.names import printable

if TYPE_CHECKING:
    import requests

ACCEPT = ", ".join([*sorted(INDEX_TYPES | MANIFEST_TYPES), "*/*"])

PULLED = re.compile(r"/v2/(.+)/(?:manifests|blobs)/[^/]+")
"""The path of a URL that a pull requests, with the repository."""
PULL = "pull"
PUSH = "pull,push"
DELETE = "pull,push,delete"
"""What a token allows (distribution/distribution, docs/content/spec/auth/scope.md)."""
TOKEN = re.compile(r"[\x21-\x7e]+")


class Login:
    """A `transport.Login` for one repository: anonymous, Basic (RFC 7617), or Bearer tokens
    (distribution/distribution, docs/content/spec/auth/token.md).

    oras only encodes the login, because its client has no limits of time or size, ignores
    $DOCKER_CONFIG and cannot read all challenges. A token is renewed when the registry
    refuses it, not when it expires.
    """

    def __init__(self, name: Name, base: str, session: Session, actions: str = PULL) -> None:
        """``base`` is the URL of the registry, ``actions`` what to ask a token for."""
        self._name = name
        self._actions = actions
        self._session = session
        self._schemes = {"https", urlsplit(base).scheme}
        self._lock = threading.Lock()
        self._credentials: credentials.Credentials | None = None
        self._problems: list[FledgeError] = []
        self._authorization: str | None = None
        self._elsewhere: dict[str, str] = {}
        """The tokens for registries to which this one redirects, by URL and scope."""

    def headers(self) -> Mapping[str, str]:
        """Return the headers for the next request."""
        authorization = self._authorization
        return {
            "Accept": ACCEPT,
            **({"Authorization": authorization} if authorization else {}),
        }

    def renew(self, refusal: requests.Response) -> bool:
        """Log in, or get a new token. Raises `FledgeError`."""
        with self._lock:
            refused = refusal.request.headers.get("Authorization")
            if refused != self._authorization:
                return True  # another thread has renewed it
            if refused is None:
                self._search()
            if bearer := _bearer(refusal):
                self._authorization = f"Bearer {self._token(bearer)}"
            elif self._credentials and self._credentials.username and not refused:
                self._authorization = f"Basic {self._basic(self._credentials)}"
            else:
                return False
            return True

    def redirected(self, refusal: requests.Response) -> str:
        """Get a token without a login: the user's is not for a registry of this one's choice."""
        path = PULLED.fullmatch(urlsplit(refusal.request.url or "").path)
        bearer = _bearer(refusal)
        if not path or not bearer:
            return ""
        url = self._token_url(bearer, [*_service(bearer), _scope(unquote(path[1]), PULL)]).geturl()
        with self._lock:
            refused = refusal.request.headers.get("Authorization")
            if self._elsewhere.get(url, refused) == refused:
                self._elsewhere[url] = f"Bearer {self._ask(url, {})}"
            return self._elsewhere[url]

    @property
    def _verb(self) -> str:
        return {PULL: "pull", PUSH: "push to"}.get(self._actions, "delete from")

    def _search(self) -> None:
        """Look for the user's login."""
        search = credentials.find(self._name, self._session.settings)
        self._credentials = search.credentials
        if not self._credentials:
            self._problems = search.problems
            for problem in search.problems:
                self._session.reporter.note(f"no login for {self._name.host}: {problem.message}")

    def refused(self, error: HttpStatusError) -> FledgeError:
        """Return the error to raise when the registry or its token server denies access."""
        host = self._name.host
        says = f", and says: {error.words}" if error.words else ""
        message = f"{host} denies access to {self._name.repository}"
        if self._problems:
            problem = self._problems[0]
            return type(problem)(
                f"{message} without a login{says}; {problem.message}", problem.hint
            )
        login = self._credentials
        again = f"docker login{'' if host == DOCKER_HUB else ' ' + host}"
        who = "without a login"
        if login and login.identity_token:
            who = f"with the identity token in {login.source}"
        elif login:
            who = f"with the login of {printable(login.username)} in {login.source}"
            if error.had_password and error.status == HTTPStatus.UNAUTHORIZED:
                return NetworkError(
                    f"{host} does not accept the login of {printable(login.username)} in"
                    f" {login.source}{says}",
                    f"User name or password are wrong, or have expired: run {again} again.",
                )
            return NetworkError(
                f"{message} {who}{says}",
                f"Check the name, and whether {printable(login.username) or 'that user'} may"
                f" {self._verb} it; {again} changes the user.",
            )
        return NetworkError(
            f"{message} {who}{says}", f"Check the name; if it is private, run {again}."
        )

    def _token(self, bearer: Challenge) -> str:
        """Get a token that allows the actions in this repository.

        The scope in the challenge is ignored, as in dockerd and skopeo: a registry must not get a
        token that allows more, or that is for another repository.
        """
        query = [*_service(bearer), _scope(self._name.repository, self._actions)]
        url = self._token_url(bearer, query)
        login = self._credentials
        if login and login.identity_token and (token := self._exchanged(login, url, query)):
            return token
        headers = (
            {"Authorization": f"Basic {self._basic(login)}"} if login and login.username else {}
        )
        try:
            return self._ask(url.geturl(), headers)
        except HttpStatusError as error:
            if error.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
                raise self.refused(error) from error
            raise

    def _token_url(self, bearer: Challenge, query: list[tuple[str, str]]) -> SplitResult:
        """Return the URL in a challenge, with a query added."""
        realm = bearer.parameters["realm"]
        url = _split_url(realm)
        # Any other URL could name a file of this machine, or reveal a password.
        if not url or url.scheme not in self._schemes:
            raise NetworkError(
                f"{self._name.host} wants a token from {printable_url(realm)!r},"
                " which is not an https URL",
                "Do not trust that registry.",
            )
        given = parse_qsl(url.query, keep_blank_values=True)
        own = [(name, value) for name, value in given if name != "scope"]
        return url._replace(query=urlencode(own + query), fragment="")

    def _exchanged(
        self, login: credentials.Credentials, url: SplitResult, query: list[tuple[str, str]]
    ) -> str:
        """Exchange an identity token for one that allows to pull (distribution/distribution,
        docs/content/spec/auth/oauth.md).

        Returns an empty string if the server does not accept it: identity tokens expire, and an
        image that everybody may pull needs none.
        """
        form = {
            "grant_type": "refresh_token",
            "refresh_token": login.identity_token,
            "client_id": "fledge",
            **dict(query),
        }
        try:
            return self._ask(url._replace(query="").geturl(), {}, form)
        except HttpStatusError as error:
            if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                raise
            self._session.reporter.note(
                f"the identity token in {login.source} is not accepted: {error.message}"
            )
            return ""

    def _ask(
        self, url: str, headers: Mapping[str, str], form: Mapping[str, str] | None = None
    ) -> str:
        """Ask a token server for a token; with ``form``, by a POST request."""
        where = printable_url(url)
        answer = self._session.fetcher.json(url, FixedHeaders(headers), form=form)
        members = JsonObject(answer, where)
        token = members.text("token", "") or members.text("access_token", "")
        if not TOKEN.fullmatch(token):
            raise CorruptError(f"{where}: the answer contains no token")
        return token

    @staticmethod
    def _basic(login: credentials.Credentials) -> str:
        from oras.auth.utils import get_basic_auth  # noqa: PLC0415

        # JSON can hold half a surrogate pair, which has no UTF-8.
        texts = (login.username, login.password)
        return str(get_basic_auth(*(text.encode(errors="replace").decode() for text in texts)))


class FixedHeaders(msgspec.Struct, frozen=True):
    """A `transport.Login` that always returns the same headers.

    Unlike plain headers it keeps the `Fetcher` from reading ~/.netrc: a registry must not be able
    to send the user's logins to a URL of its choice.
    """

    fixed: Mapping[str, str]

    def headers(self) -> Mapping[str, str]:
        """Return the headers."""
        return self.fixed

    def renew(self, refusal: requests.Response) -> bool:
        """Return False: there is no other login."""
        return False

    def redirected(self, refusal: requests.Response) -> str:
        """Return no authorization."""
        return ""


NO_LOGIN = FixedHeaders({})
"""For servers that only a registry names."""


def _bearer(refusal: requests.Response) -> Challenge | None:
    """Return the challenge to get a token, None if there is none."""
    challenges = parse_challenges(refusal.headers.get("WWW-Authenticate", ""))
    return next((c for c in challenges if c.scheme == "bearer" and c.parameters.get("realm")), None)


def _service(bearer: Challenge) -> list[tuple[str, str]]:
    service = bearer.parameters.get("service")
    return [("service", service)] if service else []


def _scope(repository: str, actions: str) -> tuple[str, str]:
    return "scope", f"repository:{repository}:{actions}"


def _split_url(url: str) -> SplitResult | None:
    try:
        return urlsplit(url)
    except ValueError:
        return None
