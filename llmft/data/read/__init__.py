"""The only place that opens user data: every row is read and checked here."""
