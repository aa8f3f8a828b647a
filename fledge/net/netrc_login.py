"""Finds the user's login for a host in ``~/.netrc`` (the GNU inetutils manual, "The .netrc file").

The entry ``default`` is for no host here: it would send a login to whatever host a URL names.
"""

from __future__ import annotations

import netrc
import os
from collections.abc import Iterable
from pathlib import Path

from fledge.errors import ConfigError, reason
from fledge.tree.regular import IrregularFileError, open_regular

MAX_NETRC_SIZE = 1 << 20
"""Maximum bytes in the file."""


def find(host: str, files: Iterable[Path]) -> tuple[str, str] | None:
    """Return user name and password for a host in the first of the files that exists.

    None if it has no entry for that very host. A file that cannot be read or understood is ignored,
    as curl does: most downloads need no login. Raises `ConfigError` if it is not a regular file, or
    too large.
    """
    for path in files:
        try:
            with open_regular(path) as file:
                if os.fstat(file.fileno()).st_size > MAX_NETRC_SIZE:
                    raise ConfigError(
                        f"{path} is larger than {MAX_NETRC_SIZE} bytes", "Check that file."
                    )
                # By the open descriptor, because the path may name another file by now.
                entry = netrc.netrc(f"/proc/self/fd/{file.fileno()}").hosts.get(host)
        except FileNotFoundError:
            continue
        except IrregularFileError as error:
            raise ConfigError(f"{path} cannot be read: {reason(error)}", "Remove it.") from error
        except (OSError, ValueError, netrc.NetrcParseError):
            return None
        # Older Pythons return None for a field that is missing, newer ones an empty text.
        return (entry[0] or "", entry[2] or "") if entry else None
    return None
