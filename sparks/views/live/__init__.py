"""A run that is still going: `follower` reads what lands, `terminal` and `server` show it."""
