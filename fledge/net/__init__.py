"""Downloads: connections, requests, and tries."""
