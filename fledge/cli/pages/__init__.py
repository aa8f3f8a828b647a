"""Pages of HTML about artifacts: each is one file that needs no network and no other file."""
