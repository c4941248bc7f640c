"""What one task needs beyond the packages below."""
