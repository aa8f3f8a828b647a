"""The content-addressed cache and its housekeeping."""
