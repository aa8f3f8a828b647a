"""Downloads: connections, requests and retries."""
