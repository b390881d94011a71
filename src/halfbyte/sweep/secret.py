"""What of a database's URL may be shown: never its password, in none of the ways in which one can be written.

Servers, drivers and libraries quote what they were given, decoded or not. So every text of theirs goes through
`scrubbed` before anybody sees it.
"""

from __future__ import annotations

import os
import re
from urllib.parse import quote, quote_plus, unquote, unquote_plus

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from halfbyte.errors import ConfigError

_HIDDEN = "***"
# What else libpq takes in a query; all others may be a password, misspelt ones too.
_OPEN = {"host", "hostaddr", "port", "dbname", "user", "connect_timeout", "client_encoding", "options", "sslmode",
         "application_name", "keepalives", "sslrootcert", "target_session_attrs", "service", "timeout"}  # fmt: skip
EXAMPLE = "write e.g. postgresql://user@host/database, and give the password in PGPASSWORD"


def parsed(url: str) -> URL:
    """The URL by its parts. Raises ConfigError, which does not show it, for what is none, or is read otherwise than it
    is meant."""
    hidden = "(it is not shown, since it may hold a password)"
    try:
        made = make_url(url)
    except ArgumentError:
        raise ConfigError("this is no database", where="--storage", found=f"no URL {hidden}", do=EXAMPLE) from None
    except ValueError:
        raise ConfigError("this is no database", where="--storage", found=f"a port that is no number {hidden}",
                          do=EXAMPLE) from None  # fmt: skip
    if "@" in f"{made.host}{made.database}" and made.drivername != "sqlite":
        raise ConfigError("the URL can't be told apart", where="--storage", found=f"more than one @ {hidden}",
                          do="write the password's own @ as %40, or give it in PGPASSWORD")  # fmt: skip
    if ":" in (made.username or ""):
        raise ConfigError("the URL can't be told apart", where="--storage", found=f"a user with a colon {hidden}",
                          do="write the colon before the password as it is, or give it in PGPASSWORD")  # fmt: skip
    return made


def shown_url(url: str) -> str:
    """`url`, one that `parsed` takes, without what is secret in it."""
    made = parsed(url)
    secret = [name for name in made.query if name not in _OPEN]
    return scrubbed(made.difference_update_query(secret).render_as_string(hide_password=True), url)


def scrubbed(text: str, url: str) -> str:
    """`text` without the secrets of `url` and of PGPASSWORD, as they are, decoded or encoded."""
    for secret in sorted(_written(url), key=len, reverse=True):
        text = re.sub(re.escape(secret), _HIDDEN, text, flags=re.IGNORECASE)  # %2f is %2F
    return text


def _written(url: str) -> set[str]:
    """Every way in which a secret may stand in a text."""
    made = make_url(url)
    plain = [os.environ.get("PGPASSWORD"), made.password]
    for name, value in made.query.items():
        if name not in _OPEN:
            plain += [value] if isinstance(value, str) else value
    ways = (str, quote, quote_plus, unquote, unquote_plus, lambda one: quote(one, safe=""), lambda one: repr(one)[1:-1])
    return {way(one) for one in plain if one for way in ways} - {"", _HIDDEN}
