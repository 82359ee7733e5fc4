"""Report: tables, charts and a page from records. Reads records and never trains; only the command line imports it."""
